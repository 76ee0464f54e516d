"""The methods that `saliency.py` compares, by captum where it has them."""

from collections.abc import Callable, Sequence

import torch
from captum.attr import IntegratedGradients, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

from seedling_hf.interpretation.faithfulness import BLUR, blur
from seedling_hf.interpretation.saliency import saliency_maps

Method = Callable[[Tensor, Tensor], Tensor]  # (1, C, H, W) and (1,) -> (1, H, W), not negative
SAMPLES, AT_ONCE = 32, 8
RISE_MASKS, RISE_CELLS = 500, 7
WINDOW, STRIDE = 0.2, 0.1  # of occlusion, of the side
SPOTS = 0.06  # of the side


def list_methods(model: nn.Module) -> dict[str, Method]:
    """Methods for a RepLKNet by name. Whole stages and blocks are hooked: in-place operations overwrite what is kept
    within them."""
    stages = dict(enumerate(model.base_model.encoder.stages, 1))
    score = lambda images: model(pixel_values=images).logits  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    return {
        "random spots": lambda images, target: blur(torch.rand(images[:, :1].shape, generator=generator), SPOTS)[:, 0],
        "middle of the image": lambda images, target: middle(images),
        **{f"Grad-CAM, stage {n}": gradcam(score, stages[n]) for n in (2, 3, 4)},
        **{f"Grad-CAM, last large-kernel block of stage {n}": gradcam(score, last_block(stages[n])) for n in (3, 4)},
        **{f"LayerCAM, stage {n}": layercam(score, [stages[n]]) for n in (2, 3, 4)},
        "LayerCAM, stages 2 to 4": layercam(score, [stages[n] for n in (2, 3, 4)]),
        "SmoothGrad": smoothgrad(score),
        "occlusion": occlusion(score),
        "RISE": rise(model, generator),
        "integrated gradients, 32 steps": integrated_gradients(score),
        "integrated gradients, 8 steps, smoothed": lambda images, target: torch.from_numpy(
            saliency_maps(model, images, target)
        ),
    }


def middle(images: Tensor) -> Tensor:
    """A Gaussian whose standard deviation is a fifth of each side."""
    height, width = images.shape[-2:]
    down, across = (torch.linspace(-2.5, 2.5, side).square().neg().div(2).exp() for side in (height, width))
    return (down[:, None] * across)[None]


def last_block(stage: nn.Module) -> nn.Module:
    return stage.layers[-1].large_kernel_block


def gradcam(score: Callable, layer: nn.Module) -> Method:
    """arXiv 1610.02391."""
    method = LayerGradCam(score, layer)
    return lambda images, target: enlarge(
        method.attribute(images, target=target, relu_attributions=True).detach(), images
    )


def layercam(score: Callable, layers: Sequence[nn.Module]) -> Method:
    """Jiang et al., IEEE Transactions on Image Processing 30, 2021: each position has its own, positive weight.

    Maps of several layers are scaled to a largest value of 1, those before the last as in the paper, and averaged.
    """

    def explain(images: Tensor, target: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for layer in layers]
        try:
            logits = score(images.clone().requires_grad_())
        finally:
            for hook in hooks:
                hook.remove()
        gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), outputs)
        maps = [(g.relu() * a.detach()).sum(1, keepdim=True).relu() for a, g in zip(outputs, gradients, strict=True)]
        maps = [enlarge(each / each.max().clamp(min=1e-12), images) for each in maps]
        return torch.stack([*(torch.tanh(2 * each) for each in maps[:-1]), maps[-1]]).mean(0)

    return explain


def integrated_gradients(score: Callable) -> Method:
    """arXiv 1703.01365, from the mean colour of the image."""
    method = IntegratedGradients(score)

    def explain(images: Tensor, target: Tensor) -> Tensor:
        start = images.mean((2, 3), keepdim=True).expand_as(images)
        maps = method.attribute(images, start, target, n_steps=SAMPLES, internal_batch_size=AT_ONCE)
        return maps.sum(1).relu().float()

    return explain


def smoothgrad(score: Callable) -> Method:
    """arXiv 1706.03825: mean absolute gradients of images with noise of a tenth of their range."""
    method = NoiseTunnel(Saliency(score))

    def explain(images: Tensor, target: Tensor) -> Tensor:
        noise = 0.1 * (images.max() - images.min()).item()
        options = {"nt_samples": SAMPLES, "nt_samples_batch_size": AT_ONCE, "stdevs": noise}
        return method.attribute(images, nt_type="smoothgrad", target=target, **options).sum(1)

    return explain


@torch.no_grad()
def occlude(method: Occlusion, images: Tensor, target: Tensor) -> Tensor:
    window, stride = (max(1, round(share * min(images.shape[-2:]))) for share in (WINDOW, STRIDE))
    windows, strides = (3, window, window), (3, stride, stride)
    maps = method.attribute(images, windows, strides, blur(images, BLUR), target, perturbations_per_eval=SAMPLES)
    return maps[:, 0].relu()


def occlusion(score: Callable) -> Method:
    """arXiv 1311.2901, with blurred squares."""
    method = Occlusion(score)
    return lambda images, target: occlude(method, images, target)


def rise(model: nn.Module, generator: torch.Generator) -> Method:
    """arXiv 1806.07421: the mean of random masks, weighted by the probability of the class under them.

    What they hide is blurred. The mean probability is subtracted, or 500 masks would leave mostly their own mean.
    """

    @torch.no_grad()
    def explain(images: Tensor, target: Tensor) -> Tensor:
        masks, hidden = draw_masks(tuple(images.shape[-2:]), generator), blur(images, BLUR)
        chances = [
            model(pixel_values=images * part + hidden * (1 - part)).logits.softmax(-1)[:, target[0]]
            for part in masks.split(SAMPLES)
        ]
        weights = torch.cat(chances)
        return ((weights - weights.mean())[:, None, None] * masks[:, 0]).mean(0)[None].relu()

    return explain


def draw_masks(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(RISE_MASKS, 1, height, width) from 0 to 1: random cells, enlarged and shifted."""
    cells = (torch.rand(RISE_MASKS, 1, RISE_CELLS + 1, RISE_CELLS + 1, generator=generator) < 0.5).float()
    steps = [-(-side // RISE_CELLS) for side in size]
    large = F.interpolate(cells, [step * (RISE_CELLS + 1) for step in steps], mode="bilinear")
    shifts = [torch.randint(step, (RISE_MASKS,), generator=generator).tolist() for step in steps]
    return torch.stack([mask[:, y : y + size[0], x : x + size[1]] for mask, y, x in zip(large, *shifts, strict=True)])


def enlarge(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps.float(), images.shape[-2:], mode="bilinear").squeeze(1)
