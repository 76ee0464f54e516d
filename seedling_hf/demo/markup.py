"""The page's HTML and its looks. Images and answer have fixed heights, so that nothing moves when an answer comes."""

from jinja2 import Environment

from seedling_hf.demo.facts import Facts
from seedling_hf.demo.verdict import Verdict
from seedling_hf.demo.words import Words
from seedling_hf.escaping import finish_html
from seedling_hf.inference.judgement import Certainty

MOST_CLASSES_NAMED = 40
ANSWER = """
<div id="sentence">{% if verdict.heading %}<h2>{{ verdict.heading }}</h2>{% endif %}
<p>{{ verdict.sentence or words("waiting") }}</p>
{% if verdict.hint %}<p class="hint">{{ verdict.hint }}</p>{% endif %}</div>
{% if verdict.rows %}<ol id="species" class="{{ "answer" if verdict.is_answer else "grey" }}">
{% for row in verdict.rows %}
<li><span>{{ row.name }}{% if row.note %}<small>{{ row.note }}</small>{% endif %}</span><b>{{ row.figure }}</b>
{% if row.share is not none %}<meter value="{{ row.share }}"></meter>{% endif %}</li>
{% endfor %}</ol>{% endif %}
"""
LEGEND = """
{% if verdict.legend == "map" %}<b>{{ words("map") }}</b>
<span>{{ words("low") }}</span><i></i><span>{{ words("high") }}</span> {{ words("outside") }}
{% elif verdict.legend == "no map" %}<b>{{ words("no map") }}</b> <span>{{ words("outside") }}</span>
{% elif verdict.legend == "boxes" %}<b>{{ words("boxes") }}</b> <span>{{ words("numbers") }}</span>{% endif %}
"""
FACTS = """
<dl>
<div><dt>{{ words("model") }}</dt><dd><b>{{ facts.name }}</b> {{ size }}</dd></div>
<div><dt>{{ words("accuracy") }}</dt><dd>{% if facts.accuracy is none -%}
<b>{{ words("accuracy none") }}</b> {{ words("accuracy none why") }}
{%- else -%}<b>{{ "%.1f%%" | format(100 * facts.accuracy) }}</b>
{% if facts.num_images is none %}{{ words("accuracy card") }}{% else %}
{{ words("accuracy of folds" if facts.of_folds else "accuracy of", count="{:,}".format(facts.num_images)) }}
{%- endif %}{% endif %}</dd></div>
<div><dt>{{ words("certainty") }}</dt>
<dd>{{ words("certainty why", count=facts.class_names | length, threshold=threshold) }}</dd></div>
<div><dt>{{ words("limits") }}</dt>
<dd>{{ words("limits why familiar" if certainty.knows_familiar else "limits why") }}</dd></div>
{% if named %}<div class="wide"><dt>{{ words("knows", count=facts.class_names | length) }}</dt>
<dd>{{ named }}</dd></div>{% endif %}</dl>
"""
# The legend has the colours of the map, from transparent to as opaque as it gets.
CSS = """
.gradio-container { max-width: 1240px !important; padding-top: 0 !important; }
.html-container { padding: 0 !important; }
#heading h1 { margin: 0 0 2px; }
#heading p { margin: 0; opacity: .8; }
#image, #shown { height: 340px !important; }
#image .source-selection { display: none; }
#image .reduced-height { height: 100%; }
#image img, #shown img { width: 100%; height: 100%; object-fit: contain; }
#legend { height: 42px; margin-top: -10px; font-size: 13px; line-height: 20px; overflow: hidden; }
#legend b { display: block; }
#legend i { display: inline-block; width: 80px; height: 10px; margin: 0 6px; border-radius: 3px; background:
  linear-gradient(90deg, rgba(0,255,255,0), rgba(64,191,255,.25), rgba(128,127,255,.5), rgba(191,64,255,.75), #f0f); }
#answer { height: 388px; overflow-y: auto; }
#sentence { min-height: 84px; }
#sentence h2 { margin: 0 0 4px; font-size: 26px; line-height: 32px; overflow-wrap: anywhere; }
#sentence p { margin: 0 0 4px; }
#sentence .hint { border-left: 3px solid #c8782c; padding-left: 8px; }
#species { list-style: none; margin: 6px 0 0; padding: 0; }
#species.grey { opacity: .5; filter: grayscale(1); }
#species li { display: flex; flex-wrap: wrap; justify-content: space-between; margin: 0 0 4px; line-height: 20px; }
#species span { overflow-wrap: anywhere; max-width: 85%; }
#species meter { width: 100%; height: 10px; }
#species small { opacity: .75; margin-left: 6px; }
#examples { border-width: 0; box-shadow: none; }
#examples .grid-wrap { padding: 0; min-height: 0; height: auto; max-height: none; }
#examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)); gap: 8px; padding: 0;
  grid-auto-rows: auto; }
#examples .gallery-item, #examples .thumbnail-item { height: auto; aspect-ratio: auto; }
#examples .thumbnail-item { border-radius: 6px; width: 100%; background: none; }
#examples .thumbnail-item img { height: 76px; width: 100%; object-fit: cover; }
#examples .caption-label { position: static; max-width: none; white-space: normal; height: 44px; padding: 2px 0;
  font-size: 12px; line-height: 14px; text-align: center; border: none; background: none; }
#facts dl { display: grid; grid-template-columns: 3fr 3fr 7fr 7fr; gap: 8px 20px; margin: 0; font-size: 13px;
  line-height: 18px; }
#facts .wide { grid-column: 1 / -1; }
#facts dt { opacity: .7; }
#facts dd { margin: 0; overflow-wrap: anywhere; }
#facts b { font-size: 18px; line-height: 24px; display: block; }
@media (max-width: 768px) {
  #image, #shown { height: 280px !important; }
  #answer { height: 330px; }
  #legend { height: 62px; }
  #examples .grid-container { grid-template-columns: repeat(4, 1fr); }
  #answered { order: 1; } #explained { order: 2; }
  #facts dl { grid-template-columns: 1fr; }
}
"""
# What the browser cannot draw leaves an empty frame instead of a broken one.
SCRIPT = """() => {
  for (const [event, seen] of [["error", "hidden"], ["load", "visible"]])
    document.addEventListener(event, ({target}) => {
      if (target.tagName === "IMG" && target.closest("#image")) target.style.visibility = seen;
    }, true);
}"""
_environment = Environment(autoescape=True, finalize=finish_html, trim_blocks=True)


def render_answer(verdict: Verdict, words: Words) -> str:
    return _render(ANSWER, verdict=verdict, words=words)


def render_legend(verdict: Verdict, words: Words) -> str:
    return _render(LEGEND, verdict=verdict, words=words)


def render_facts(facts: Facts, words: Words, certainty: Certainty) -> str:
    """Name, accuracy, certainty and limits of a model, and the names of its classes unless images show them all."""
    parameters = f"{facts.parameters / 1e6:.1f} M"
    side = f"{facts.side}×{facts.side}"
    size = (
        words("model why", parameters=parameters, side=side)
        if facts.side
        else words("model why any", parameters=parameters)
    )
    named, rest = "", len(facts.class_names) - MOST_CLASSES_NAMED
    if len(facts.examples) < len(facts.class_names):
        names = [words.name(name) for name in facts.class_names[:MOST_CLASSES_NAMED]]
        named = words("separator").join([*names, words("and more", count=rest)] if rest > 0 else names)
    threshold = f"{certainty.threshold:.0%}"
    return _render(
        FACTS, facts=facts, words=words, certainty=certainty, threshold=threshold, size=size, named=named
    )  # fmt: skip


def _render(template: str, **values: object) -> str:
    """HTML in which gradio finds no template of its own, whose marks are `${…}` and `{{…}}`."""
    html = _environment.from_string(template).render(**values)
    return html.replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;").strip()
