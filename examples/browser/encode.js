"use strict";
// Reads binary STL files, samples points on their surfaces as `pointdistill sample` does with the same seed, and runs
// an encoder that `pointdistill export --format onnx` wrote. Sizes: N points, F triangles, D the encoder's width.

const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const STEP = 0x2360ed051fc65da44385df649fccf645n;

/** 32-bit words from 32-bit words: how numpy.random.SeedSequence (pool of four) fills a generator's state. */
function seedWords(entropy, count) {
  let constant = 0x43b0d7e5;
  const scramble = (value) => {
    value = (value ^ constant) >>> 0;
    constant = Math.imul(constant, 0x931e8875) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (x, y) => {
    const mixed = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) >>> 0;
    return (mixed ^ (mixed >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((k) => scramble(entropy[k] ?? 0));
  for (let from = 0; from < 4; from += 1) {
    for (let to = 0; to < 4; to += 1) {
      if (from !== to) pool[to] = mix(pool[to], scramble(pool[from]));
    }
  }
  for (const word of entropy.slice(4)) {
    for (let to = 0; to < 4; to += 1) pool[to] = mix(pool[to], scramble(word));
  }
  constant = 0x8b51f9dd;
  return Array.from({ length: count }, (_, k) => {
    let value = (pool[k % 4] ^ constant) >>> 0;
    constant = Math.imul(constant, 0x58f38ded) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  });
}

/** Uniform numbers in [0, 1), those of numpy.random.default_rng for the same seed: the PCG64 generator. */
function uniform(entropy) {
  const words = seedWords(entropy, 8).map(BigInt);
  const [s0, s1, i0, i1] = [0, 2, 4, 6].map((k) => words[k] | (words[k + 1] << 32n));
  const increment = ((((i0 << 64n) | i1) << 1n) | 1n) & MASK128;
  let state = (increment + ((s0 << 64n) | s1)) & MASK128;
  const advance = () => { state = (state * STEP + increment) & MASK128; };
  advance();
  return () => {
    advance();
    const folded = (state >> 64n) ^ (state & MASK64);
    const turn = state >> 122n;
    const bits = ((folded >> turn) | (folded << (64n - turn))) & MASK64;
    return Number(bits >> 11n) / 9007199254740992;
  };
}

/** The words that a seed and a file's name give: every file has its own numbers, whatever is sampled beside it. */
async function entropyOf(seed, name) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(name));
  const view = new DataView(digest);
  return [seed, ...Array.from({ length: 8 }, (_, k) => view.getUint32(4 * k, true))];
}

/** (9 F) coordinates of the corners of a binary STL file. */
function readStl(buffer) {
  const view = new DataView(buffer);
  const count = buffer.byteLength < 84 ? 0 : view.getUint32(80, true);
  if (count === 0 || buffer.byteLength < 84 + 50 * count) {
    throw new Error("not a binary STL file; convert it, for example with MeshLab");
  }
  const corners = new Float64Array(9 * count);
  for (let face = 0; face < count; face += 1) {
    for (let k = 0; k < 9; k += 1) corners[9 * face + k] = view.getFloat32(96 + 50 * face + 4 * k, true);
  }
  return corners;
}

/** (3 N) points on the triangles, uniform by area. */
function samplePoints(corners, count, random) {
  const faces = corners.length / 9;
  const reached = new Float64Array(faces);
  let total = 0;
  for (let face = 0; face < faces; face += 1) {
    const [ax, ay, az, bx, by, bz, cx, cy, cz] = corners.subarray(9 * face, 9 * face + 9);
    const [ux, uy, uz, vx, vy, vz] = [bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az];
    const [x, y, z] = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
    total += Math.sqrt(x * x + y * y + z * z) / 2;
    reached[face] = total;
  }
  if (!(total > 0)) throw new Error("no triangle has an area");
  const targets = Float64Array.from({ length: count }, () => random() * total);
  const points = new Float32Array(3 * count);
  for (let k = 0; k < count; k += 1) {
    let [low, high] = [0, faces - 1]; // the first triangle at whose end more area than the target is reached
    while (low < high) {
      const middle = (low + high) >> 1;
      if (reached[middle] > targets[k]) high = middle; else low = middle + 1;
    }
    let [u, v] = [random(), random()];
    if (u + v > 1) [u, v] = [1 - u, 1 - v];
    for (let axis = 0; axis < 3; axis += 1) {
      const [a, b, c] = [0, 3, 6].map((corner) => corners[9 * low + corner + axis]);
      points[3 * k + axis] = (b - a) * u + a + (c - a) * v;
    }
  }
  return points;
}

/** One vector for a cloud: the CLS token, if there is one, and the mean over the patches. */
async function encode(session, points) {
  const given = { points: new ort.Tensor("float32", points, [1, points.length / 3, 3]) };
  const { cls, patches } = await session.run(given);
  const [, count, width] = patches.dims;
  const mean = new Float64Array(width);
  patches.data.forEach((value, k) => { mean[k % width] += value / count; });
  return [...(cls ? cls.data : []), ...mean];
}

function cosine(first, second) {
  const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
  return dot(first, second) / Math.sqrt(dot(first, first) * dot(second, second));
}

/** The points and features of files; N is that of the model's input. */
async function encodeFiles(session, count, files, seed) {
  const shapes = [];
  for (const file of files) {
    const random = uniform(await entropyOf(seed, file.name));
    const points = samplePoints(readStl(await file.arrayBuffer()), count, random);
    shapes.push({ name: file.name, points: Array.from(points), features: await encode(session, points) });
  }
  return shapes;
}

async function run() {
  const say = (text) => { document.getElementById("said").textContent = text; };
  const [model] = document.getElementById("model").files;
  const files = [...document.getElementById("shapes").files];
  if (!model || files.length < 2) return say("Choose a model and at least two shapes.");
  try {
    say("Computing …");
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create(await model.arrayBuffer());
    const count = Number(document.getElementById("points").value);
    const shapes = await encodeFiles(session, count, files, Number(document.getElementById("seed").value));
    const [query, ...others] = shapes;
    const ranked = others.map((shape) => [cosine(query.features, shape.features), shape.name]);
    ranked.sort((a, b) => b[0] - a[0]);
    document.getElementById("nearest").replaceChildren(...ranked.map(([similarity, name]) => {
      const row = document.createElement("li");
      row.textContent = `${name}: ${similarity.toFixed(4)}`; // as text: a file may have any name
      return row;
    }));
    window.encoded = shapes;
    return say(`Nearest to ${query.name}, by cosine:`);
  } catch (error) {
    return say(`error: ${error.message}`);
  }
}

document.getElementById("run").addEventListener("click", run);
