"""Parts of a network that are not trained, and how the network is put into training mode then.

A frozen part works as in evaluation, as with timm's `freeze`, detectron2's `FREEZE_AT` and mmdetection's
`frozen_stages`: its BatchNorms normalize by their stored statistics, which stay as they are, and nothing is dropped in
it. The features that a head learns from are then those that it will be given.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from seedling_hf.errors import InputError
from seedling_hf.spelling import find_near
from seedling_hf.train_arguments import OptimizationArguments

BACKBONE, STEM, STAGE = "backbone", "stem", "stage"
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # private: the common class of all BatchNorms
IN_EVALUATION = "_modules_in_evaluation"  # names, on the model itself, of which copies are made

logger = logging.getLogger(__name__)


def freeze(model: PreTrainedModel, arguments: OptimizationArguments) -> None:
    """Freezes what `--freeze` names, and the statistics that `--freeze_bn_statistics` keeps; in place.

    Call it before the optimizer is built and before anything wraps the model, and from then on `train_unfrozen` in
    place of `train()`.

    Raises:
        InputError: for a part that the network does not have, for all parts, or statistics without BatchNorm.
    """
    parameters = dict(model.named_parameters())
    for name in _find_parameters(model, arguments.freeze):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(
            f"expected something left to train, found --freeze {' '.join(arguments.freeze)}, which is the whole "
            f"network; {BACKBONE} is all but the classifier"
        )
    norms = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORM)]
    if arguments.freeze_bn_statistics and not norms:
        raise InputError(
            f"expected a network with BatchNorm for --freeze_bn_statistics, found a {type(model).__name__} without; "
            "remove the flag"
        )
    names = set(_frozen_modules(model)) if arguments.freeze else set()
    if arguments.freeze_bn_statistics is not None:
        names = names | set(norms) if arguments.freeze_bn_statistics else names - set(norms)
    setattr(model, IN_EVALUATION, frozenset(names))


def train_unfrozen(model: nn.Module) -> nn.Module:
    """Puts a model into training mode, except for what `freeze` has frozen in it; without that, it is `train()`."""
    keep_frozen(model.train())
    return model


def keep_frozen(model: nn.Module) -> None:
    """Returns what `freeze` has frozen in a model, without wrappers, to evaluation mode."""
    if names := getattr(model, IN_EVALUATION, ()):
        for name, module in model.named_modules():
            # Of a layer itself the mode only says whether it is computed twice with checkpointing, as it must be for
            # trained layers before it.
            if name in names and not isinstance(module, GradientCheckpointingLayer):
                module.training = False


def list_parts(model: PreTrainedModel) -> dict[str, list[str]]:
    """The parameters of each part that has a name for `--freeze`: `backbone`, `stem`, `stage1`, and so on.

    Of timm's networks stem and stages are those of `group_matcher(coarse=True)`, and the backbone is all that
    `get_classifier()` does not hold. Of those of transformers the backbone is the base model, the stages are in its
    list of modules that holds the most parameters, and the stem is what comes before. In a network without stages,
    such as a ViT, its blocks count as stages.
    """
    if model.config.model_type == "timm_wrapper":
        return _list_timm_parts(model.timm_model, "timm_model.")
    names, base = [name for name, _ in model.named_parameters()], model.base_model
    if base is model:
        return {}
    prefix = f"{model.base_model_prefix}."
    parts = {BACKBONE: [name for name in names if name.startswith(prefix)]}
    lists = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return parts
    # The first of equals: a list that holds another one comes before it.
    name, stages = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    members = [[n for n in parts[BACKBONE] if n.startswith(f"{prefix}{name}.{i}.")] for i in range(len(stages))]
    before = parts[BACKBONE].index(members[0][0]) if members[0] else 0
    if before:
        parts[STEM] = parts[BACKBONE][:before]
    return parts | {f"{STAGE}{i}": found for i, found in enumerate(members, start=1) if found}


def describe_freezing(model: nn.Module, arguments: OptimizationArguments) -> str | None:
    """What is frozen, in a line; None for nothing."""
    if not arguments.freeze and not arguments.freeze_bn_statistics:
        return None
    what = f"frozen: {', '.join(arguments.freeze)}" if arguments.freeze else "nothing frozen"
    names = getattr(model, IN_EVALUATION, ())
    norms = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORM)]
    if not norms:
        return what
    return f"{what}; {sum(name in names for name in norms)} of {len(norms)} BatchNorms use their stored statistics"


def count_trained(model: nn.Module) -> int:
    """The number of parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _find_parameters(model: PreTrainedModel, names: Iterable[str]) -> Iterator[str]:
    """The parameters of parts and modules.

    Raises:
        InputError: for a name of neither.
    """
    parts, modules = list_parts(model), dict(model.named_modules())
    for name in names:
        full = next((each for each in (name, f"{model.base_model_prefix}.{name}") if each in modules), None)
        if name in parts:
            found = parts[name]
        else:
            found = [] if full is None else [f"{full}.{each}" for each, _ in modules[full].named_parameters()]
        if not found:
            near = find_near(name, [*parts, *modules])
            raise InputError(
                f"expected parts of the network for --freeze ({_describe_parts(parts)}), found {name}; "
                f"{f'did you mean {near}?' if near else 'choose among them'}"
            )
        yield from found


def _describe_parts(parts: Mapping[str, list[str]]) -> str:
    stages = [part for part in parts if part.startswith(STAGE)]
    words = [part for part in parts if part not in stages]
    words += [f"{stages[0]} to {stages[-1]}"] if stages else []
    return ", or ".join(filter(None, [", ".join(words), "the name of a module with parameters"]))


def _list_timm_parts(network: nn.Module, prefix: str) -> dict[str, list[str]]:
    from timm.models import group_parameters

    classifiers = network.get_classifier()
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    head = {parameter for classifier in classifiers for parameter in classifier.parameters()}
    body = [name for name, parameter in network.named_parameters() if parameter not in head]
    groups = group_parameters(network, network.group_matcher(coarse=True))
    parts = {BACKBONE: body} | {
        f"{STAGE}{number}" if number else STEM: names
        for number, names in sorted(groups.items())
        if set(names) <= set(body)
    }
    return {part: [f"{prefix}{name}" for name in names] for part, names in parts.items()}


def _frozen_modules(model: nn.Module) -> Iterator[str]:
    """The names of modules that have parameters, all of them frozen, and of the modules in these."""
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield from (f"{name}.{inner}".strip(".") for inner, _ in module.named_modules())
