"use strict";
// Turns one cloud of a page at a time. No library and no network: points come with the page.

const LEVELS = 32767;
const SHADES = 32;
const STOPS = [[59, 111, 212], [35, 160, 148], [224, 160, 48]]; // by height, from the ground up
const AZIMUTH = (35 * Math.PI) / 180;
const ELEVATION = (20 * Math.PI) / 180;

/** (3 n) numbers in [-1, 1]: x, y, z of each point, from little-endian int16 in base64. */
function decodePoints(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const points = new Float32Array(bytes.length / 2);
  for (let k = 0; k < points.length; k += 1) points[k] = view.getInt16(2 * k, true) / LEVELS;
  return points;
}

/** Rows: the directions to the right, up, and towards the viewer; z is up in the world. */
function camera(azimuth, elevation) {
  const [sa, ca] = [Math.sin(azimuth), Math.cos(azimuth)];
  const [se, ce] = [Math.sin(elevation), Math.cos(elevation)];
  return [[-sa, ca, 0], [-ca * se, -sa * se, ce], [ca * ce, sa * ce, se]];
}

/** One point in the camera's directions. */
function project(rows, x, y, z) {
  return rows.map((row) => row[0] * x + row[1] * y + row[2] * z);
}

/** The colour of a height between 0 (lowest) and 1 (highest). */
function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const first = Math.min(Math.floor(place), STOPS.length - 2);
  const mix = (channel) =>
    Math.round(STOPS[first][channel] + (place - first) * (STOPS[first + 1][channel] - STOPS[first][channel]));
  return `rgb(${mix(0)}, ${mix(1)}, ${mix(2)})`;
}

const COLOURS = Array.from({ length: SHADES }, (_, k) => shade(k / (SHADES - 1)));

/** What drawing needs of a cloud: bounds, radius about the middle, and a colour number a point. */
function measure(points) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  let radius = 1e-6;
  for (let k = 0; k < points.length; k += 3) {
    for (let axis = 0; axis < 3; axis += 1) {
      low[axis] = Math.min(low[axis], points[k + axis]);
      high[axis] = Math.max(high[axis], points[k + axis]);
    }
    radius = Math.max(radius, Math.hypot(points[k], points[k + 1], points[k + 2]));
  }
  const height = Math.max(high[2] - low[2], 1e-9);
  const colour = new Uint8Array(points.length / 3);
  for (let k = 0; k < colour.length; k += 1) {
    colour[k] = Math.round(((points[3 * k + 2] - low[2]) / height) * (SHADES - 1));
  }
  return { points, low, high, radius, colour };
}

/** The ground under a cloud and its axes, each with the shape's length along it; z through the middle, beyond the top. */
function drawAxes(context, rows, cloud, toScreen, ink, sides) {
  const floor = cloud.low[2];
  const reach = 1.1 * Math.max(cloud.high[0], cloud.high[1], -cloud.low[0], -cloud.low[1], 0.25 * cloud.radius);
  const at = (x, y, z) => toScreen(project(rows, x, y, z));
  const line = (...corners) => {
    context.beginPath();
    corners.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  };
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = 1;
  context.globalAlpha = 0.35;
  const corner = (x, y) => at(x * reach, y * reach, floor);
  line(corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1), corner(-1, -1));
  line(corner(-1, 0), corner(1, 0));
  line(corner(0, -1), corner(0, 1));
  context.globalAlpha = 1;
  context.fillText(`x ${sides[0]}`, ...corner(1.12, 0));
  context.fillText(`y ${sides[1]}`, ...corner(0, 1.12));
  const foot = at(0, 0, floor);
  const tip = at(0, 0, cloud.high[2] + 0.3 * cloud.radius);
  context.lineWidth = 2;
  line(foot, tip);
  const length = Math.hypot(tip[0] - foot[0], tip[1] - foot[1]);
  if (length > 12) {
    const [dx, dy] = [(6 * (tip[0] - foot[0])) / length, (6 * (tip[1] - foot[1])) / length];
    line([tip[0] - dx - dy, tip[1] - dy + dx], tip, [tip[0] - dx + dy, tip[1] - dy - dx]);
  }
  context.fillText(`z, up ${sides[2]}`, tip[0] + 8, tip[1]);
}

/** Draw a cloud to fill a canvas, far points first and paler. */
function draw(canvas, cloud, look) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const rows = camera(look.azimuth, look.elevation);
  const scale = (look.zoom * Math.min(width, height)) / (2.9 * cloud.radius);
  const toScreen = ([right, up]) => [width / 2 + scale * right, height / 2 - scale * up];
  context.clearRect(0, 0, width, height);
  if (look.axes) {
    context.font = `${Math.round(13 * look.ratio)}px system-ui, sans-serif`;
    drawAxes(context, rows, cloud, toScreen, look.ink, look.sides);
  }
  const count = cloud.colour.length;
  const seen = new Float32Array(3 * count);
  const order = new Uint32Array(count);
  for (let k = 0; k < count; k += 1) {
    seen.set(project(rows, cloud.points[3 * k], cloud.points[3 * k + 1], cloud.points[3 * k + 2]), 3 * k);
    order[k] = k;
  }
  order.sort((a, b) => seen[3 * a + 2] - seen[3 * b + 2]);
  for (const k of order) {
    const near = (seen[3 * k + 2] / cloud.radius + 1) / 2;
    const side = look.dot * (0.6 + 0.4 * near);
    const [x, y] = toScreen([seen[3 * k], seen[3 * k + 1]]);
    context.globalAlpha = 0.35 + 0.65 * near;
    context.fillStyle = COLOURS[cloud.colour[k]];
    context.fillRect(x - side / 2, y - side / 2, side, side);
  }
  context.globalAlpha = 1;
}

const HOME = { azimuth: AZIMUTH, elevation: ELEVATION, zoom: 1 };

/** The large canvas: one cloud, and from where it is seen. Turns by itself until it is touched. */
class Stage {
  constructor(canvas, ratio) {
    this.canvas = canvas;
    this.cloud = null;
    this.look = { ...HOME, axes: true, ratio, dot: 2.4 * ratio, ink: "#7d8590" };
    this.turning = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.waiting = false;
  }

  show() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      draw(this.canvas, this.cloud, this.look);
      if (!this.turning) return;
      this.look.azimuth += 0.006;
      this.show();
    });
  }

  turn(right, up) {
    this.turning = false;
    this.look.azimuth -= right;
    this.look.elevation = Math.min(Math.max(this.look.elevation + up, -Math.PI / 2), Math.PI / 2);
    this.show();
  }

  zoom(factor) {
    this.look.zoom = Math.min(Math.max(this.look.zoom * factor, 0.3), 20);
    this.show();
  }

  reset() {
    Object.assign(this.look, HOME);
    this.show();
  }

  fit() {
    this.canvas.width = Math.round(this.canvas.clientWidth * this.look.ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * this.look.ratio);
    this.show();
  }
}

/** Pointer, wheel and keys turn the stage. */
function listen(stage) {
  const { canvas } = stage;
  let held = null; // where the pointer was last; movementX has another unit in every browser
  canvas.addEventListener("pointerdown", (event) => {
    stage.turning = false;
    held = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons || !held) return;
    stage.turn(0.01 * (event.clientX - held[0]), 0.01 * (event.clientY - held[1]));
    held = [event.clientX, event.clientY];
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    stage.zoom(Math.exp(-0.0015 * event.deltaY));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => stage.reset());
  const keys = {
    ArrowLeft: () => stage.turn(-0.1, 0), ArrowRight: () => stage.turn(0.1, 0),
    ArrowUp: () => stage.turn(0, -0.1), ArrowDown: () => stage.turn(0, 0.1),
    "+": () => stage.zoom(1.2), "-": () => stage.zoom(1 / 1.2),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}

/** A button with a small picture of a shape. */
function pictureButton(shape, cloud, ratio) {
  const button = document.createElement("button");
  const picture = document.createElement("canvas");
  const name = document.createElement("span");
  picture.width = picture.height = Math.round(110 * ratio);
  draw(picture, cloud, { ...HOME, zoom: 1.3, ratio, dot: 1.2 * ratio, axes: false });
  name.textContent = shape.label || shape.id;
  button.title = shape.id;
  button.append(picture, name);
  return button;
}

/** Fill the shelf with small pictures; the one that is chosen stands on the stage. */
function start() {
  const shapes = JSON.parse(document.getElementById("shapes").textContent);
  const clouds = shapes.map((shape) => measure(decodePoints(shape.points)));
  const ratio = window.devicePixelRatio || 1;
  const stage = new Stage(document.getElementById("stage"), ratio);
  const shelf = shapes.map((shape, number) => pictureButton(shape, clouds[number], ratio));
  const choose = (number) => {
    stage.cloud = clouds[number];
    stage.look.sides = shapes[number].sides;
    document.getElementById("name").textContent = shapes[number].id;
    document.getElementById("facts").textContent = shapes[number].facts;
    shelf.forEach((button, k) => button.setAttribute("aria-pressed", String(k === number)));
    stage.show();
  };
  shelf.forEach((button, number) => button.addEventListener("click", () => choose(number)));
  document.getElementById("shelf").append(...shelf);
  listen(stage);
  window.addEventListener("resize", () => stage.fit());
  choose(0);
  stage.fit();
}

if (typeof document !== "undefined") start();
if (typeof module !== "undefined") module.exports = { camera, decodePoints, draw, measure, project, shade };
