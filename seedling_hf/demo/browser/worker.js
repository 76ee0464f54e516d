// Answers one image after another beside the page, which stays responsive.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { ImageProblem, readPixels } from "./pixels.js";

// Threads need headers that a static Space does not send.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href };

/** Loads a model, and returns a function: file → its probabilities, unfamiliarity and milliseconds. */
export async function load({ model, preprocessing }) {
  const session = await ort.InferenceSession.create(new URL(model, import.meta.url).href, {
    executionProviders: ["wasm"],
  });
  const [height, width] = preprocessing.image_size;
  return async (file) => {
    const start = performance.now();
    const pixels = await readPixels(file, preprocessing);
    const { logits, unfamiliarity } = await session.run({
      pixel_values: new ort.Tensor("uint8", pixels, [1, height, width, 3]),
    });
    const probabilities = softmax(logits.data);
    if (!probabilities.every(Number.isFinite)) throw new ImageProblem("overflow");
    return { probabilities, unfamiliarity: unfamiliarity?.data[0], milliseconds: performance.now() - start };
  };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

let classify;
let last = Promise.resolve();

async function answer({ id, file, options }) {
  try {
    if (options) {
      classify = await load(options);
      postMessage({ id });
    } else postMessage({ id, ...(await classify(file)) });
  } catch (error) {
    const problem = error instanceof ImageProblem ? error.reason : "failed";
    postMessage({ id, problem, values: { reason: String(error.message ?? error), ...error.values } });
  }
}

addEventListener("message", ({ data }) => {
  last = last.then(() => answer(data));
});
