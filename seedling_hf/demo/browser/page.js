// The page: images in, an answer for each. All that it says is in page.json.

const TOP = 5;
const find = (id) => document.getElementById(id);
const about = await (await fetch("page.json")).json();
const language = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase()).find((tag) => tag in about.texts) ?? "en";
const texts = about.texts[language];
const names = about.names[language];
let done = 0;
let count = 0;

const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? about.values[name] ?? "");
const percent = (share) => `${(100 * share).toFixed(0)}%`;

/** A worker that may connect to no other site: one that starts from a blob has the rules of this page. */
function startWorker() {
  const code = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)}; postMessage("here")`;
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const worker = new Worker(address, { type: "module" });
  const waiting = new Map();
  let next = 0;
  const ask = (message) =>
    new Promise((resolve) => {
      waiting.set(next, resolve);
      worker.postMessage({ ...message, id: next++ });
    });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => {
      if (data === "here") return resolve(ask);
      waiting.get(data.id)(data);
      waiting.delete(data.id);
    };
    worker.onerror = ({ message }) => reject(new Error(message || "its program did not start"));
  });
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** What is said of an answer, in the words of the demo: kind, heading, sentence. */
function judge({ probabilities, unfamiliarity, problem, values }) {
  if (problem) {
    if (problem === "too many pixels") {
      const shown = { ...values, width: values.width.toLocaleString(), height: values.height.toLocaleString() };
      return ["failed", say("too large"), say("too large why", shown)];
    }
    if (problem === "overflow") return ["failed", say("overflow"), say("overflow why")];
    const reason = problem === "failed" ? values.reason : say(problem);
    return ["failed", say("broken"), say("broken why", { reason })];
  }
  const best = probabilities.indexOf(Math.max(...probabilities));
  const probability = percent(probabilities[best]);
  if (unfamiliarity > 1) return ["unfamiliar", say("unfamiliar"), say("unfamiliar why")];
  if (probabilities[best] >= about.threshold) return ["sure", names[best], say("answer", { probability })];
  return ["unsure", say("unsure"), say("unsure why", { name: names[best], probability })];
}

function listSpecies(probabilities) {
  const order = probabilities.map((_, number) => number).sort((a, b) => probabilities[b] - probabilities[a]);
  return element("ol", {}, ...order.slice(0, TOP).map((number) => {
    const share = probabilities[number];
    const meter = element("meter", { value: share });
    meter.setAttribute("aria-hidden", "true");
    return element("li", {}, element("span", { textContent: names[number] }), element("b", { textContent: percent(share) }), meter);
  }));
}

function show(article, answer) {
  const [kind, heading, sentence] = judge(answer);
  article.className = kind;
  const parts = [element("h3", { textContent: heading }), element("p", { textContent: sentence })];
  if (answer.probabilities) parts.push(listSpecies(answer.probabilities));
  const took = answer.milliseconds ? ` · ${answer.milliseconds.toFixed(0)} ms` : "";
  parts.push(element("p", { className: "file", textContent: article.dataset.name + took }));
  article.lastElementChild.replaceChildren(...parts);
}

async function classify(files) {
  if (!files.length || find("files").disabled) return;
  find("waiting").hidden = true;
  find("clear").hidden = false;
  count += files.length;
  const articles = files.map((file) => {
    const image = element("img", { src: URL.createObjectURL(file), alt: file.name });
    image.onerror = () => (image.style.visibility = "hidden");
    const article = element("article", {}, image, element("div", { textContent: "…" }));
    article.dataset.name = file.name;
    return article;
  });
  find("waiting").after(...articles);
  tell();
  await Promise.all(files.map(async (file, i) => {
    show(articles[i], await ask({ file }));
    done++;
    tell();
  }));
}

function tell() {
  find("status").textContent = say("working", { done, count });
}

function clear() {
  for (const article of document.querySelectorAll("article")) {
    URL.revokeObjectURL(article.querySelector("img").src);
    article.remove();
  }
  find("waiting").hidden = false;
  find("clear").hidden = true;
  find("status").textContent = say("ready");
  find("files").focus();
}

async function open(address, name) {
  const response = await fetch(address);
  await classify([new File([await response.blob()], name)]);
}

function listen() {
  find("files").onchange = ({ target }) => {
    classify([...target.files]);
    target.value = ""; // the same file again
  };
  find("clear").onclick = clear;
  addEventListener("dragover", (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
  addEventListener("dragleave", () => find("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    find("drop").classList.remove("over");
    classify([...event.dataTransfer.files]);
  });
  addEventListener("paste", ({ clipboardData }) => classify([...clipboardData.files]));
}

function draw() {
  document.documentElement.lang = language;
  document.title = say("title");
  for (const part of document.querySelectorAll("[data-text]")) part.textContent = say(part.dataset.text, { count: names.length });
  find("facts").innerHTML = about.facts[language];
  find("examples").hidden = !about.examples.length;
  find("examples").lastElementChild.append(...about.examples.map(({ file, number }) => {
    const image = element("img", { src: file, alt: "", loading: "lazy" });
    const button = element("button", { type: "button", disabled: true }, image, names[number]);
    button.onclick = () => open(file, names[number]);
    return button;
  }));
  find("status").textContent = say("loading");
}

draw();
listen();
let ask;
try {
  ask = await startWorker();
  const { problem, values } = await ask({ options: { model: about.model, preprocessing: about.preprocessing } });
  if (problem) throw new Error(values.reason);
  for (const part of document.querySelectorAll("#files, #examples button")) part.disabled = false;
  find("status").textContent = say("ready");
} catch (error) {
  find("status").textContent = say("not loaded", { reason: error.message });
}
