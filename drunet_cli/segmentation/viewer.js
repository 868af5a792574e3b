"use strict";

// Places are voxels of the page along X, Y, Z (to the patient's left, back, top); voxel i reaches from i to i + 1.
const info = JSON.parse(document.querySelector("#case").textContent);
const [nx, ny] = info.shape;
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const sources = Object.keys(info.labels);
const modalities = Object.keys(info.modalities);

// Of every plane: the axes across, down and through the screen, and whether the one down the screen runs upwards.
const PLANES = {
  axial: { across: 0, down: 1, through: 2, upward: false },
  coronal: { across: 0, down: 2, through: 1, upward: true },
  sagittal: { across: 1, down: 2, through: 0, upward: true },
};
const NCR = 1, ED = 2, ET = 3;
const LETTER_ROOM = 24; // CSS pixels around an image
const LINE = 1.6; // CSS pixels

const state = {
  modality: modalities[0], style: "fill", shown: "prediction", drag: "cross", opacity: 0.45,
  cross: info.shape.map((n) => n >> 1), pointer: null, hasLines: true, smooth: true, zoom: 1, centre: info.shape.map((n) => n / 2),
};
const windows = Object.fromEntries(modalities.map((modality) => [modality, [...info.modalities[modality].window]]));

// --- Voxels ---------------------------------------------------------------------------------------------------------------

const volumes = {}; // Uint8Array by modality or source, X fastest
const unpacking = {};

async function inflated(key) {
  const element = one(`#volume-${key}`);
  const text = atob(element.textContent);
  const deflated = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) deflated[index] = text.charCodeAt(index);
  element.remove(); // the text is not needed again
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Unpack a volume when it is first needed: every byte is stored as the difference from the one `stride` before it.
function unpack(key) {
  unpacking[key] ??= inflated(key).then((bytes) => {
    const { stride, shape = info.shape } = info.modalities[key] ?? info.labels[key];
    if (bytes.length !== shape.reduce((product, n) => product * n)) throw new Error(`${key} has ${bytes.length} voxels`);
    for (let index = stride; index < bytes.length; index++) bytes[index] += bytes[index - stride];
    volumes[key] = bytes;
  });
  return unpacking[key];
}

const labelAt = (source, [x, y, z]) => volumes[source][x + nx * (y + ny * z)];

function codeAt(modality, place) {
  const { step, shape } = info.modalities[modality];
  const [x, y, z] = place.map((index, axis) => Math.floor(index / step[axis]));
  return volumes[modality][x + shape[0] * (y + shape[1] * z)];
}

// The intensity that a code stands for; a code is 0 in the background.
function intensity({ low, high, levels }, code) {
  return code === 0 ? 0 : low + ((code - 1) * (high - low)) / (levels - 1);
}

function intensityInWords(modality, code) {
  const image = info.modalities[modality];
  if (code === 0) return "0";
  const digits = clamp(-Math.floor(Math.log10((image.high - image.low) / image.levels)), 0, 6);
  const beyond = code === 1 ? "\u2264 " : code === image.levels ? "\u2265 " : "";
  return beyond + intensity(image, code).toFixed(digits);
}

// Voxels of every class in every slice along every axis: areas[source][axis][class][slice].
const areas = {};

function measure(source) {
  const counts = info.shape.map((n) => [0, 1, 2, 3].map(() => new Uint32Array(n)));
  const labels = volumes[source];
  for (let z = 0, index = 0; z < info.shape[2]; z++)
    for (let y = 0; y < ny; y++)
      for (let x = 0; x < nx; x++, index++) {
        const label = labels[index];
        if (label === 0) continue;
        counts[0][label][x]++;
        counts[1][label][y]++;
        counts[2][label][z]++;
      }
  areas[source] = counts;
}

const areaOf = (source, axis, classes, slice) => classes.reduce((sum, label) => sum + areas[source][axis][label][slice], 0);

// Go to the slices in which a group of classes is largest; the middle one of those where it is equally large.
function goToLargest(group) {
  const classes = info.groups[group];
  const source = sources.find((each) => each === state.shown) ?? sources[0];
  const found = info.shape.map((n, axis) => {
    const sizes = Array.from({ length: n }, (_, slice) => areaOf(source, axis, classes, slice));
    const most = Math.max(...sizes);
    const fullest = sizes.flatMap((size, slice) => (size === most ? [slice] : []));
    return most > 0 ? fullest[fullest.length >> 1] : null;
  });
  if (!found.includes(null)) moveTo(found);
}

// --- Views ----------------------------------------------------------------------------------------------------------------

const views = all(".view").map((element) => {
  const cut = one(".cut", element);
  const strip = one(".strip", element);
  const layers = { image: document.createElement("canvas"), labels: document.createElement("canvas") };
  return { element, cut, strip, layers, source: element.dataset.source, plane: PLANES[element.dataset.plane], name: element.dataset.plane };
});
let active = views[0];
let waiting = false;

// Draw everything once before the next picture, however many changes there are until then.
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const view of views) if (view.element.offsetParent !== null) draw(view);
    readOut();
  });
}

// How places in a plane become CSS pixels of its canvas.
function layout(view) {
  const { across, down, upward } = view.plane;
  const width = view.cut.clientWidth, height = view.cut.clientHeight;
  const [columnMm, rowMm] = [info.spacing[across], info.spacing[down]];
  const fit = Math.min((width - 2 * LETTER_ROOM) / (info.shape[across] * columnMm), (height - 2 * LETTER_ROOM) / (info.shape[down] * rowMm));
  const perMm = Math.max(fit, 0.01) * state.zoom;
  const sign = upward ? -1 : 1;
  return {
    width, height, perMm,
    column: columnMm * perMm, row: rowMm * perMm, // pixels of a voxel
    x: (place) => width / 2 + (place - state.centre[across]) * columnMm * perMm,
    y: (place) => height / 2 + sign * (place - state.centre[down]) * rowMm * perMm,
    placeX: (x) => state.centre[across] + (x - width / 2) / (columnMm * perMm),
    placeY: (y) => state.centre[down] + (sign * (y - height / 2)) / (rowMm * perMm),
  };
}

function fitCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((length) => Math.max(1, Math.round(length * ratio)));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

function draw(view) {
  const context = fitCanvas(view.cut);
  const place = layout(view);
  context.fillStyle = "#000";
  context.fillRect(0, 0, place.width, place.height);
  if (volumes[state.modality]) drawImage(context, view, place);
  if (state.style !== "off")
    for (const [source, isOutline, isDotted] of drawnLabels(view))
      if (volumes[source]) (isOutline ? drawOutline : drawFill)(context, view, place, source, isDotted);
  if (state.hasLines) drawCross(context, view, place);
  drawStrip(view);
  describe(view, place);
}

// Which label maps a view shows, and how.
function drawnLabels(view) {
  const isOutline = state.style === "outline";
  if (state.shown === "both") return [["prediction", isOutline, false], ["reference", true, true]];
  return [[state.shown === "beside" ? view.source : state.shown, isOutline, false]];
}

// A slice of an image as grey pixels, the window set, and stretched over the voxels it stands for.
function drawImage(context, view, place) {
  const { across, down, through, upward } = view.plane;
  const { shape, step, levels } = info.modalities[state.modality];
  const voxels = volumes[state.modality];
  const [black, white] = windows[state.modality];
  const greys = new Uint32Array(256);
  for (let code = 0; code <= levels; code++) {
    const share = (intensity(info.modalities[state.modality], code) - black) / (white - black || 1e-9);
    const grey = code === 0 ? 0 : Math.round(255 * clamp(share, 0, 1));
    greys[code] = (255 << 24) | (grey << 16) | (grey << 8) | grey; // alpha, blue, green, red: browsers are little-endian
  }
  const strides = [1, shape[0], shape[0] * shape[1]];
  const [columns, rows] = [shape[across], shape[down]];
  const first = Math.floor(state.cross[through] / step[through]) * strides[through];
  const pixels = new Uint32Array(columns * rows);
  for (let row = 0, pixel = 0; row < rows; row++) {
    let index = first + (upward ? rows - 1 - row : row) * strides[down];
    for (let column = 0; column < columns; column++, pixel++, index += strides[across]) pixels[pixel] = greys[voxels[index]];
  }
  const [right, bottom] = [columns * step[across], rows * step[down]];
  stretch(context, view.layers.image, pixels, columns, rows, place, [0, right], upward ? [bottom, 0] : [0, bottom], state.smooth);
}

function stretch(context, layer, pixels, columns, rows, place, [left, right], [top, bottom], smooth) {
  if (layer.width !== columns || layer.height !== rows) Object.assign(layer, { width: columns, height: rows });
  layer.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), columns, rows), 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(layer, place.x(left), place.y(top), place.x(right) - place.x(left), place.y(bottom) - place.y(top));
}

// Labels of a slice: [row from the top][column], and its size.
function labelSlice(view, source) {
  const { across, down, through, upward } = view.plane;
  const strides = [1, nx, nx * ny];
  const [columns, rows] = [info.shape[across], info.shape[down]];
  const labels = new Uint8Array(columns * rows);
  const first = state.cross[through] * strides[through];
  for (let row = 0, pixel = 0; row < rows; row++) {
    let index = first + (upward ? rows - 1 - row : row) * strides[down];
    for (let column = 0; column < columns; column++, pixel++, index += strides[across]) labels[pixel] = volumes[source][index];
  }
  return { labels, columns, rows };
}

function drawFill(context, view, place, source) {
  const { labels, columns, rows } = labelSlice(view, source);
  const alpha = Math.round(255 * state.opacity) << 24;
  const colours = [0, ...info.colours.map(([red, green, blue]) => alpha | (blue << 16) | (green << 8) | red)];
  const { down, upward } = view.plane;
  const pixels = Uint32Array.from(labels, (label) => colours[label]);
  stretch(context, view.layers.labels, pixels, columns, rows, place, [0, columns], upward ? [info.shape[down], 0] : [0, rows], false);
}

// Whether a class has a line where it meets another: as previews have it, of two classes the inner one alone, but a thin line of
// enhancing tumour around necrosis.
function lineBetween(label, other) {
  if (other === 0) return LINE;
  if (label === NCR) return LINE;
  if (label === ET) return other === ED ? LINE : LINE / 2;
  return 0;
}

// Lines inside the edges of voxels, so that lines of two classes that meet lie side by side. Dotted ones are drawn in part.
function drawOutline(context, view, place, source, isDotted) {
  const { labels, columns, rows } = labelSlice(view, source);
  const top = view.plane.upward ? info.shape[view.plane.down] : 0;
  const [left, upper] = [place.x(0), place.y(top)];
  const [width, height] = [place.column, place.row];
  const [skipX, skipY] = isDotted ? [width * 0.28, height * 0.28] : [0, 0];
  context.globalAlpha = Math.min(1, state.opacity + 0.5);
  for (const label of [ED, ET, NCR]) {
    context.fillStyle = colourOf(label);
    context.beginPath();
    for (let row = 0, pixel = 0; row < rows; row++)
      for (let column = 0; column < columns; column++, pixel++) {
        if (labels[pixel] !== label) continue;
        const [x, y] = [left + column * width, upper + row * height];
        const neighbour = (isThere, offset) => (isThere ? labels[pixel + offset] : 0);
        const [west, east] = [neighbour(column > 0, -1), neighbour(column < columns - 1, 1)];
        const [north, south] = [neighbour(row > 0, -columns), neighbour(row < rows - 1, columns)];
        const line = (other) => (other === label ? 0 : lineBetween(label, other));
        if (line(west)) context.rect(x, y + skipY, line(west), height - 2 * skipY);
        if (line(east)) context.rect(x + width - line(east), y + skipY, line(east), height - 2 * skipY);
        if (line(north)) context.rect(x + skipX, y, width - 2 * skipX, line(north));
        if (line(south)) context.rect(x + skipX, y + height - line(south), width - 2 * skipX, line(south));
      }
    context.fill();
  }
  context.globalAlpha = 1;
}

// Two lines through the middle of the cross-hair's voxel, which they leave free.
function drawCross(context, view, place) {
  const x = Math.round(place.x(state.cross[view.plane.across] + 0.5)) + 0.5;
  const y = Math.round(place.y(state.cross[view.plane.down] + 0.5)) + 0.5;
  const gap = Math.max(8, 0.75 * Math.max(place.column, place.row));
  context.strokeStyle = "rgb(143 211 255 / 60%)";
  context.lineWidth = 1;
  context.beginPath();
  for (const [fromX, fromY, toX, toY] of [[0, y, x - gap, y], [x + gap, y, place.width, y], [x, 0, x, y - gap], [x, y + gap, x, place.height]]) {
    context.moveTo(fromX, fromY);
    context.lineTo(toX, toY);
  }
  context.stroke();
}

// All slices of the plane, with how much of them is tumour, and a mark at the one that is shown.
function drawStrip(view) {
  const context = fitCanvas(view.strip);
  const { through } = view.plane;
  const n = info.shape[through];
  const [width, height] = [view.strip.clientWidth, view.strip.clientHeight];
  context.fillStyle = "#12161a";
  context.fillRect(0, 0, width, height);
  const source = state.shown === "both" ? "prediction" : state.shown === "beside" ? view.source : state.shown;
  if (areas[source] && state.style !== "off") {
    const sums = Array.from({ length: n }, (_, slice) => areaOf(source, through, [NCR, ED, ET], slice));
    const most = Math.max(1, ...sums);
    for (let slice = 0; slice < n; slice++) {
      let left = 0;
      for (const label of [NCR, ET, ED]) {
        const length = (areas[source][through][label][slice] / most) * width;
        context.fillStyle = colourOf(label);
        context.fillRect(left, Math.floor(topOfSlice(slice, n, height, through)), length, Math.ceil(height / n));
        left += length;
      }
    }
  }
  context.fillStyle = "#fff";
  context.fillRect(0, Math.round(topOfSlice(state.cross[through], n, height, through) + height / n / 2) - 1, width, 2);
}

// Upwards is to the patient's top, front and right: there strips begin, and there wheel and arrows go when turned up.
const isDownwards = (through) => through !== 2;
const topOfSlice = (slice, n, height, through) => (height * (isDownwards(through) ? slice : n - 1 - slice)) / n;

// RAS millimetres of the middle of a voxel. They are not told as "L 99 mm": BraTS images have their origin in a corner, so that
// this would be said of the patient's right side too.
const patientPlace = (place) => info.affine.map((row) => row[3] + place.reduce((sum, index, axis) => sum + row[axis] * index, 0));

function describe(view, place) {
  const { through } = view.plane;
  const [slice, n] = [state.cross[through] + 1, info.shape[through]];
  const mm = `${"xyz"[through]} = ${patientPlace(state.cross)[through].toFixed(1)}`; // the axes lie along R, A, S, or nearly so
  const number = Object.assign(document.createElement("b"), { textContent: `${view.name} ${slice}` });
  one(".caption", view.element).replaceChildren(number, `/${n}`);
  one(".place", view.element).textContent = `${mm} mm`;
  for (const [name, value] of [["max", n], ["now", slice], ["text", `${view.name} slice ${slice} of ${n}, ${mm} mm`]])
    view.cut.setAttribute(`aria-value${name}`, value);
  const length = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm * place.perMm <= place.width / 4) ?? 1;
  const scale = one(".scale", view.element);
  scale.textContent = `${length} mm`;
  scale.style.width = `${length * place.perMm}px`;
}

// --- What stands beside the views -----------------------------------------------------------------------------------------

const colourOf = (label) => `rgb(${info.colours[label - 1].join(" ")})`;

// A swatch has the colours of all its classes, side by side.
function paint(swatch, classes) {
  const stripes = classes.map((label, index) => `${colourOf(label)} ${(100 * index) / classes.length}% ${(100 * (index + 1)) / classes.length}%`);
  swatch.style.background = stripes.length ? `linear-gradient(to right, ${stripes.join()})` : "none";
}

function readOut() {
  const place = state.pointer ?? state.cross;
  one("#where").textContent = state.pointer ? "pointer" : "cross-hair";
  for (const source of sources) {
    const cell = one(`#label-${source}`);
    const label = volumes[source] ? labelAt(source, place) : 0;
    cell.textContent = label === 0 ? "0 none" : `${info.labels[source].values[label]} ${info.classes[label - 1]}`;
    paint(cell.previousElementSibling, label === 0 ? [] : [label]);
  }
  for (const modality of modalities)
    one(`#value-${modality}`).textContent = volumes[modality] ? intensityInWords(modality, codeAt(modality, place)) : "\u2026";
  one("#patient").textContent = `${patientPlace(place).map((mm) => mm.toFixed(1)).join("  ")} mm`;
  one("#voxel").textContent = info.stored.map(([axis, first, flip]) => first + flip * place[axis]).join("  ");
}

function showControls() {
  for (const name of ["modality", "style", "shown", "drag"])
    for (const button of all(`[data-${name}]`)) button.setAttribute("aria-pressed", button.dataset[name] === state[name]);
  one("#views").classList.toggle("beside", state.shown === "beside");
  one("#opacity").value = Math.round(state.opacity * 100);
  one("#percent").textContent = `${Math.round(state.opacity * 100)} %`;
  const { low, high } = info.modalities[state.modality];
  const digits = clamp(2 - Math.floor(Math.log10(high - low || 1)), 0, 6);
  for (const [index, id] of ["black", "white"].entries())
    if (document.activeElement?.id !== id) one(`#${id}`).value = windows[state.modality][index].toFixed(digits);
  if (one("#legend"))
    one("#legend").textContent = { both: "dotted lines: reference" }[state.shown] ?? "";
}

function update(changes = {}) {
  Object.assign(state, changes);
  showControls();
  redraw();
}

async function showModality(modality) {
  update({ modality });
  await unpack(modality);
  redraw();
}

function setWindow(black, white) {
  const { low, high } = info.modalities[state.modality];
  const least = (high - low) / 250; // one grey
  windows[state.modality] = [black, Math.max(white, black + least)];
  update();
}

// --- Moving ---------------------------------------------------------------------------------------------------------------

function moveTo(place) {
  state.cross = place.map((index, axis) => clamp(Math.round(index), 0, info.shape[axis] - 1));
  if (state.zoom > 1)
    for (const view of views) {
      if (view.element.offsetParent === null) continue;
      const { width, height, x, y } = layout(view);
      const [column, row] = [x(state.cross[view.plane.across] + 0.5), y(state.cross[view.plane.down] + 0.5)];
      if (column < 0 || column > width) state.centre[view.plane.across] = state.cross[view.plane.across] + 0.5;
      if (row < 0 || row > height) state.centre[view.plane.down] = state.cross[view.plane.down] + 0.5;
    }
  state.pointer = null;
  redraw();
}

function moveSlice(view, by) {
  const place = [...state.cross];
  place[view.plane.through] += isDownwards(view.plane.through) ? -by : by;
  moveTo(place);
}

function moveInPlane(view, columns, rows) {
  const place = [...state.cross];
  place[view.plane.across] += columns;
  place[view.plane.down] += view.plane.upward ? -rows : rows;
  moveTo(place);
}

// Zoom about a place, which stays where it is on the screen.
function zoomTo(zoom, about) {
  const next = clamp(zoom, 1, 16);
  const whole = info.shape.map((n) => n / 2);
  state.centre = next === 1 ? whole : state.centre.map((centre, axis) => about[axis] + ((centre - about[axis]) * state.zoom) / next);
  update({ zoom: next });
}

function enlarge(view) {
  for (const each of views) each.element.classList.toggle("large", each.name === view.name);
  redraw();
}

function reset() {
  windows[state.modality] = [...info.modalities[state.modality].window];
  update({ zoom: 1, centre: info.shape.map((n) => n / 2) });
}

function activate(view) {
  active = view;
  for (const each of views) each.element.classList.toggle("active", each === view);
}

// The voxel under the pointer, or null beside the image.
function placeUnder(view, event, isClamped) {
  const { across, down, through } = view.plane;
  const box = view.cut.getBoundingClientRect();
  const { placeX, placeY } = layout(view);
  const place = [...state.cross];
  place[across] = Math.floor(placeX(event.clientX - box.left));
  place[down] = Math.floor(placeY(event.clientY - box.top));
  place[through] = state.cross[through];
  if (isClamped) return place.map((index, axis) => clamp(index, 0, info.shape[axis] - 1));
  return place.every((index, axis) => index >= 0 && index < info.shape[axis]) ? place : null;
}

function dragOf(event) {
  if (event.button === 1) return "pan";
  return event.button === 2 || event.shiftKey ? "window" : state.drag;
}

for (const view of views) {
  const { cut, strip, plane } = view;
  let drag = null; // what a pressed button does, and where it last was
  let turned = 0; // of the wheel, in pixels

  cut.addEventListener("pointerdown", (event) => {
    cut.focus({ focusVisible: false });
    cut.setPointerCapture(event.pointerId);
    drag = { does: dragOf(event), x: event.clientX, y: event.clientY };
    if (drag.does === "cross") moveTo(placeUnder(view, event, true));
    if (event.button === 1) event.preventDefault();
  });
  cut.addEventListener("pointermove", (event) => {
    if (drag === null) {
      state.pointer = placeUnder(view, event, false);
      redraw();
      return;
    }
    const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
    Object.assign(drag, { x: event.clientX, y: event.clientY });
    if (drag.does === "cross") moveTo(placeUnder(view, event, true));
    else if (drag.does === "window") {
      const { low, high } = info.modalities[state.modality];
      const [black, white] = windows[state.modality];
      const perPixel = (high - low) / 400;
      const middle = (black + white) / 2 + down * perPixel;
      const half = Math.max((white - black) / 2 + right * perPixel, perPixel);
      setWindow(middle - half, middle + half);
    } else {
      const { column, row } = layout(view);
      state.centre[plane.across] -= right / column;
      state.centre[plane.down] -= ((plane.upward ? -1 : 1) * down) / row;
      redraw();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) cut.addEventListener(end, () => (drag = null));
  cut.addEventListener("pointerleave", () => {
    state.pointer = null;
    redraw();
  });
  cut.addEventListener("contextmenu", (event) => event.preventDefault());
  cut.addEventListener("dblclick", () => enlarge(view));
  cut.addEventListener("focus", () => activate(view));
  view.element.addEventListener("pointerenter", () => activate(view));
  one(".enlarge", view.element)?.addEventListener("click", () => enlarge(view));

  view.element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const down = event.deltaY * (event.deltaMode === 0 ? 1 : 40);
    if (event.ctrlKey) {
      zoomTo(state.zoom * Math.exp(-down / 300), (placeUnder(view, event, true) ?? state.cross).map((index) => index + 0.5));
      return;
    }
    // A notch of a wheel is a slice; trackpads send many small turns.
    turned = Math.abs(down) >= 40 ? Math.sign(down) * 40 : turned + down;
    if (Math.abs(turned) >= 40) {
      moveSlice(view, -Math.sign(turned));
      turned = 0;
    }
  }, { passive: false });

  const jump = (event) => {
    if (event.buttons !== 1) return;
    const box = strip.getBoundingClientRect();
    const share = clamp((event.clientY - box.top) / box.height, 0, 0.9999);
    const place = [...state.cross];
    place[plane.through] = Math.floor((isDownwards(plane.through) ? share : 1 - share) * info.shape[plane.through]);
    moveTo(place);
  };
  strip.addEventListener("pointerdown", (event) => {
    strip.setPointerCapture(event.pointerId);
    activate(view);
    jump(event);
  });
  strip.addEventListener("pointermove", jump);
  new ResizeObserver(redraw).observe(view.element);
}

// --- Buttons and keys -----------------------------------------------------------------------------------------------------

for (const button of all("[data-modality]")) button.addEventListener("click", () => showModality(button.dataset.modality));
for (const name of ["style", "shown", "drag"])
  for (const button of all(`[data-${name}]`)) button.addEventListener("click", () => update({ [name]: button.dataset[name] }));
for (const button of all("[data-group]")) button.addEventListener("click", () => goToLargest(button.dataset.group));
one("#opacity").addEventListener("input", (event) => update({ opacity: event.target.value / 100 }));
for (const id of ["black", "white"])
  one(`#${id}`).addEventListener("change", () => {
    const [black, white] = [Number(one("#black").value), Number(one("#white").value)];
    if (Number.isFinite(black) && Number.isFinite(white)) setWindow(black, white);
  });
one("#auto").addEventListener("click", () => setWindow(...info.modalities[state.modality].window));
one("#reset").addEventListener("click", reset);
one("#help").addEventListener("click", () => one("#keys").showModal());
for (const input of all("input")) input.addEventListener("pointerup", () => input.type === "range" && input.blur());

const nextOf = (values, value) => values[(values.indexOf(value) + 1) % values.length];
let styleBefore = "fill";

function switchLabels() {
  if (state.style !== "off") styleBefore = state.style;
  update({ style: state.style === "off" ? styleBefore : "off" });
}

const KEYS = {
  ArrowUp: (event) => (event.shiftKey ? moveInPlane(active, 0, -1) : moveSlice(active, 1)),
  ArrowDown: (event) => (event.shiftKey ? moveInPlane(active, 0, 1) : moveSlice(active, -1)),
  ArrowRight: (event) => (event.shiftKey ? moveInPlane(active, 1, 0) : moveSlice(active, 1)),
  ArrowLeft: (event) => (event.shiftKey ? moveInPlane(active, -1, 0) : moveSlice(active, -1)),
  PageUp: () => moveSlice(active, 10),
  PageDown: () => moveSlice(active, -10),
  Home: () => moveSlice(active, -1e6),
  End: () => moveSlice(active, 1e6),
  a: () => setWindow(...info.modalities[state.modality].window),
  d: () => update({ drag: state.drag === "cross" ? "window" : "cross" }),
  e: () => goToLargest("ET"),
  f: () => update({ style: "fill" }),
  l: switchLabels,
  o: () => update({ style: "outline" }),
  r: () => sources.length > 1 && update({ shown: nextOf(["prediction", "reference", "both", "beside"], state.shown) }),
  s: () => update({ smooth: !state.smooth }),
  t: () => goToLargest("TC"),
  v: () => enlarge(active),
  w: () => goToLargest("WT"),
  x: () => update({ hasLines: !state.hasLines }),
  0: reset,
  "[": () => update({ opacity: clamp(state.opacity - 0.05, 0.1, 1) }),
  "]": () => update({ opacity: clamp(state.opacity + 0.05, 0.1, 1) }),
  "+": () => zoomTo(state.zoom * 1.25, state.cross.map((index) => index + 0.5)),
  "=": () => zoomTo(state.zoom * 1.25, state.cross.map((index) => index + 0.5)),
  "-": () => zoomTo(state.zoom / 1.25, state.cross.map((index) => index + 0.5)),
  "?": () => one("#keys").showModal(),
};
modalities.forEach((modality, index) => (KEYS[index + 1] = () => showModality(modality)));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || one("#keys").open || event.target.matches("input")) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act(event);
});

// An address that ends in #120,98,77 opens the page at this voxel of the file.
function goToHash() {
  const indices = location.hash.slice(1).split(",").map(Number);
  if (indices.length !== 3 || !indices.every(Number.isInteger)) return false;
  const place = [0, 0, 0];
  info.stored.forEach(([axis, first, flip], stored) => (place[axis] = (indices[stored] - first) * flip));
  moveTo(place);
  return true;
}
addEventListener("hashchange", goToHash);

// --- Beginning ------------------------------------------------------------------------------------------------------------

function fail(words) {
  Object.assign(one("#state"), { textContent: words, className: "trouble" });
}

async function begin() {
  for (const swatch of all(".swatch[data-of]")) paint(swatch, info.groups[swatch.dataset.of]);
  activate(views[0]);
  update();
  if (typeof DecompressionStream === "undefined") {
    fail("This browser is too old for this page: it needs Chrome or Edge 80, Firefox 113 or Safari 16.4.");
    return;
  }
  await Promise.all([unpack(state.modality), ...sources.map(unpack)]);
  sources.forEach(measure);
  if (!goToHash()) goToLargest("WT");
  one("#state").textContent = "";
  document.documentElement.dataset.ready = "";
  redraw();
  for (const modality of modalities) {
    await unpack(modality); // one after another, while somebody looks at the first
    redraw();
  }
}

begin().catch((error) => fail(`The images in this file cannot be unpacked: it is damaged (${error.message}).`));
