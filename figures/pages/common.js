"use strict";
// What all pages share. Names, words and captions are data: they are written as text alone.

const page = JSON.parse(document.getElementById("page").textContent);
const colours = bytesOf(page.colours);
const find = (name) => document.getElementById(name);

function record(number) {
  return JSON.parse(find(`record-${number}`).textContent);
}

/** Inflate all maps of a record, wherever they stand in it, into `levels`. */
async function unpack(part) {
  if (typeof part !== "object" || part === null) return;
  if ("deflated" in part) {
    const stream = new Blob([bytesOf(part.deflated)]).stream().pipeThrough(new DecompressionStream("deflate"));
    part.levels = new Uint8Array(await new Response(stream).arrayBuffer());
    delete part.deflated;
  }
  await Promise.all(Object.values(part).filter((value) => !ArrayBuffer.isView(value)).map(unpack));
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** A new element with properties, then children: elements, or text that stays text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** 0.74321 -> "74 %", 0.0612 -> "6.1 %"; the number and its sign stay on one line. */
function percent(share) {
  const value = 100 * share;
  const text = value >= 9.95 ? value.toFixed(0) : value >= 0.01 ? value.toPrecision(2) : "0";
  return `${text}\u00a0%`;
}

/** Buttons of which one is pressed; `choose(number)` runs when another one is. */
function pressOne(buttons, number) {
  buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(place === number)));
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  const values = options.map(([value]) => String(value));
  select.value = values.includes(String(chosen)) ? chosen : values[0];
}

/** The layers, counted from 1 as in the figures; their values count from 0 as `--layer` does. */
function fillLayers(select) {
  fillSelect(select, Array.from({ length: page.layers }, (_, layer) => [layer, `${layer + 1} of ${page.layers}`]),
    page.layer);
}

/** The small photos above; `show(record)` runs when another photo is chosen. */
function photoRow(show) {
  const buttons = page.entries.map((entry, number) => {
    const image = make("img", { src: entry.thumbnail, alt: entry.name });
    return make("button", { type: "button", title: entry.name, onclick: () => choose(number) }, image);
  });
  async function choose(number) {
    pressOne(buttons, number);
    const data = record(number);
    await unpack(data);
    data.pixels = await pixelsOf(data.photo);
    if (buttons[number].getAttribute("aria-pressed") === "true") show(data);
  }
  find("photos").replaceChildren(...buttons);
  find("photos").hidden = buttons.length < 2;
  return choose(0);
}

async function pixelsOf(source) {
  const image = make("img", { src: source });
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Map `number` of packed maps: its levels, the value of the highest level, and its peak. */
function mapOf(packed, number, grid) {
  const cells = grid[0] * grid[1];
  return {
    levels: packed.levels.subarray(number * cells, (number + 1) * cells), grid,
    top: packed.tops[number], peak: packed.peaks[number], highest: packed.highest[number],
    entropy: packed.entropies?.[number],
  };
}

const cellName = (cell, grid) => `row ${Math.floor(cell / grid[1]) + 1}, column ${cell % grid[1] + 1}`;

/** For each pixel of a side: the two cells it lies between, and its share of the second; null where
 *  the model did not see it. */
function between(pixels, cells, start, end) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const place = ((pixel + 0.5) / pixels - start) / (end - start);
    if (place < 0 || place > 1) return null;
    const exact = Math.min(Math.max(place * cells - 0.5, 0), cells - 1);
    const first = Math.floor(exact);
    return [first, Math.min(first + 1, cells - 1), exact - first];
  });
}

/** Draw the photo and, unless it is null, the map over it, bilinearly. `opacity` runs from 0, the
 *  photo alone, to 1, the map alone. Where the map is low, more of the photo is seen. */
function draw(canvas, photo, box, map, opacity) {
  const { width, height } = photo;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (map === null) {
    context.putImageData(photo, 0, 0);
    return;
  }
  const [rows, columns] = map.grid;
  const across = between(width, columns, box[0], box[2]);
  const down = between(height, rows, box[1], box[3]);
  const weight = Array.from({ length: 256 }, (_, level) =>
    opacity > 0 ? (0.35 + 0.4 * level / 255) ** ((1 - opacity) / opacity) : 0);
  const result = context.createImageData(width, height);
  const colour = 255 / page.steps; // that a level has
  const [from, to] = [photo.data, result.data];
  for (let y = 0, at = 0; y < height; y += 1) {
    const row = down[y];
    for (let x = 0; x < width; x += 1, at += 4) {
      const column = across[x];
      to[at + 3] = 255;
      if (row === null || column === null) {
        const grey = 140 + (from[at] + from[at + 1] + from[at + 2]) / 12;
        to[at] = to[at + 1] = to[at + 2] = grey;
        continue;
      }
      const above = row[0] * columns;
      const below = row[1] * columns;
      const upper = map.levels[above + column[0]] * (1 - column[2]) + map.levels[above + column[1]] * column[2];
      const lower = map.levels[below + column[0]] * (1 - column[2]) + map.levels[below + column[1]] * column[2];
      const level = Math.round((upper * (1 - row[2]) + lower * row[2]) * colour);
      const share = weight[level];
      for (let part = 0; part < 3; part += 1) {
        to[at + part] = from[at + part] * (1 - share) + colours[3 * level + part] * share;
      }
    }
  }
  context.putImageData(result, 0, 0);
}

/** Put a mark on the middle of a cell. */
function placeMark(mark, cell, grid, box, sized = false) {
  mark.hidden = cell === null;
  if (cell === null) return;
  const [rows, columns] = grid;
  const [row, column] = [Math.floor(cell / columns), cell % columns];
  mark.style.left = `${100 * (box[0] + (column + 0.5) / columns * (box[2] - box[0]))}%`;
  mark.style.top = `${100 * (box[1] + (row + 0.5) / rows * (box[3] - box[1]))}%`;
  if (sized) {
    mark.style.width = `${100 * (box[2] - box[0]) / columns}%`;
    mark.style.height = `${100 * (box[3] - box[1]) / rows}%`;
  }
}

/** The colour scale below the photo. */
function showScale(top, quantity, box) {
  const canvas = find("scale");
  Object.assign(canvas, { width: 256, height: 1 });
  const context = canvas.getContext("2d");
  const strip = context.createImageData(256, 1);
  for (let level = 0; level < 256; level += 1) {
    strip.data.set([...colours.subarray(3 * level, 3 * level + 3), 255], 4 * level);
  }
  context.putImageData(strip, 0, 0);
  const unseen = box[0] > 0.002 || box[1] > 0.002 || box[2] < 0.998 || box[3] < 0.998;
  find("scale-top").textContent = `${percent(top)} and more`;
  find("scale-name").textContent = quantity + (unseen ? "; grey: the model did not see it" : "");
}
