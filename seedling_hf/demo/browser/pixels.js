// An image file becomes the pixels that the model takes, by the same arithmetic as in Python: to the last bit for 8-bit
// RGB and grey JPEG and PNG.
//
// The resizing is that of torchvision for bytes: separable, bicubic (a = -0.5) with antialiasing, weights as integers of
// 16 bits, rounded to bytes after each direction. A canvas resizes in another way in every browser.

const STRIP = 512; // rows that are read at once: large canvases are refused by phones
const MOST_PIXELS = 64e6;
const THINNEST = 100; // as in Python: beyond it, the short side would be scaled up to gigabytes

/** A file that gets no answer: `reason` is a key of the page's texts. */
export class ImageProblem extends Error {
  constructor(reason, values = {}) {
    super(reason);
    this.reason = reason;
    this.values = values;
  }
}

/** The pixels of a file, a Uint8Array (height, width, 3) of the `preprocessing` size. */
export async function readPixels(file, preprocessing) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (isTorn(bytes)) throw new ImageProblem("torn");
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new ImageProblem("unreadable");
  }
  try {
    const { width, height } = bitmap;
    if (width * height > MOST_PIXELS)
      throw new ImageProblem("too many pixels", { width, height, most: MOST_PIXELS / 1e6 });
    if (Math.max(width, height) > THINNEST * Math.min(width, height)) throw new ImageProblem("too thin");
    return prepare(rowReader(bitmap), width, height, preprocessing);
  } finally {
    bitmap.close();
  }
}

/** Resizes and crops rows of RGBA, which `readRows(top, count)` gives, as `preprocessing` says. */
export function prepare(readRows, width, height, { shortest_edge: edge, image_size: [cropHeight, cropWidth] }) {
  const short = Math.min(width, height);
  const newWidth = edge ? Math.trunc((edge * width) / short) : cropWidth;
  const newHeight = edge ? Math.trunc((edge * height) / short) : cropHeight;
  const left = Math.trunc((newWidth - cropWidth) / 2);
  const top = Math.trunc((newHeight - cropHeight) / 2);
  const columns = weigh(width, newWidth).slice(left, left + cropWidth);
  const rows = weigh(height, newHeight).slice(top, top + cropHeight);
  const first = rows[0].start;
  const end = Math.max(...rows.map(({ start, weights }) => start + weights.length));
  const narrow = new Uint8Array((end - first) * cropWidth * 3);
  for (let row = first; row < end; row += STRIP) {
    const count = Math.min(STRIP, end - row);
    const source = readRows(row, count);
    for (let y = 0; y < count; y++)
      for (let x = 0; x < cropWidth; x++)
        blend(source, y * width * 4, 4, columns[x], narrow, ((row - first + y) * cropWidth + x) * 3);
  }
  const pixels = new Uint8Array(cropHeight * cropWidth * 3);
  for (let y = 0; y < cropHeight; y++)
    for (let x = 0; x < cropWidth; x++)
      blend(narrow, (x - first * cropWidth) * 3, cropWidth * 3, rows[y], pixels, (y * cropWidth + x) * 3);
  return pixels;
}

function blend(source, offset, step, { start, weights, precision }, target, at) {
  const half = 1 << (precision - 1);
  let red = half, green = half, blue = half;
  for (let i = 0, from = offset + start * step; i < weights.length; i++, from += step) {
    red += weights[i] * source[from];
    green += weights[i] * source[from + 1];
    blue += weights[i] * source[from + 2];
  }
  target[at] = toByte(red >> precision);
  target[at + 1] = toByte(green >> precision);
  target[at + 2] = toByte(blue >> precision);
}

const toByte = (value) => (value < 0 ? 0 : value > 255 ? 255 : value);

/** For each of `count` pixels of a side the first of the `size` source pixels that it is made of, and their weights. */
function weigh(size, count) {
  if (size === count)
    return Array.from({ length: count }, (_, start) => ({ start, weights: Int16Array.of(1 << 14), precision: 14 }));
  const scale = size / count;
  const wide = Math.max(scale, 1);
  const all = [];
  for (let i = 0; i < count; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - 2 * wide + 0.5), 0);
    const length = Math.min(Math.trunc(center + 2 * wide + 0.5), size) - start;
    const weights = Array.from({ length }, (_, j) => bicubic((j + start - center + 0.5) * (1 / wide)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    all.push({ start, weights: weights.map((weight) => weight / total) });
  }
  const largest = Math.max(...all.map(({ weights }) => Math.max(...weights)));
  let precision = 0;
  while (precision < 22 && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < 2 ** 15) precision++;
  const rounded = (weight) => Math.trunc(weight * 2 ** precision + (weight < 0 ? -0.5 : 0.5));
  return all.map(({ start, weights }) => ({ start, weights: Int16Array.from(weights, rounded), precision }));
}

/** Keys (1981) with a = -0.5, as Pillow and torchvision have it where they antialias. */
function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** Reads rows of a bitmap as RGBA whose colours no transparency has changed: it is dropped, as in Python. */
function rowReader(bitmap) {
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, Math.min(STRIP, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const viaCanvas = (top, count) => {
    context.clearRect(0, 0, width, count);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    return context.getImageData(0, 0, width, count).data;
  };
  for (let top = 0; top < height; top += STRIP) {
    const data = viaCanvas(top, Math.min(STRIP, height - top));
    for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return viaTexture(bitmap) ?? viaCanvas;
  }
  return viaCanvas;
}

/** A canvas keeps colours multiplied by their opacity, which loses them; a texture keeps them as they are. */
function viaTexture(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) return null;
  return (top, count) => {
    const data = new Uint8Array(width * count * 4);
    gl.readPixels(0, top, width, count, gl.RGBA, gl.UNSIGNED_BYTE, data);
    return data;
  };
}

/** Whether a JPEG or PNG ends before its image does: browsers show the rest in grey, and Python refuses it. */
function isTorn(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.byteLength >= 8 && view.getUint32(0) === 0x89504e47) {
    for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at))
      if (view.getUint32(at + 4) === 0x49454e44) return false; // IEND
    return true;
  }
  if (view.byteLength < 4 || view.getUint16(0) !== 0xffd8) return false;
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda)
    at += bytes[at + 1] === 0xff ? 1 : 2 + view.getUint16(at + 2);
  for (let i = bytes.length - 2; i > at; i--) if (bytes[i] === 0xff && bytes[i + 1] === 0xd9) return false; // the end
  return true;
}
