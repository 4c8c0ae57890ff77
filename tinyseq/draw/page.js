"use strict";
// The page of one picture: draws what page_layout.js has laid out as SVG, and answers pointer and keyboard.
// Everything that comes from the picture is put into the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const find = (id) => document.getElementById(id);
const canvas = find("canvas"),
  view = find("view"),
  card = find("card");

const SHARP = ["parameter", "constant"]; // boxes with sharp corners

// --- drawing --------------------------------------------------------------------------------------------------------

function make(name, attributes = {}, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
const round = (x) => Math.round(x * 10) / 10;

/** The path of an edge: each piece through its points, smoothly where lines run down, with round corners where not. */
function path(edge) {
  let d = "",
    last = null;
  const go = (command, ...points) => {
    d += command + points.map(([x, y]) => `${round(x)} ${round(y)}`).join(" ");
    last = points.at(-1);
  };
  for (const [container, l] of edge.pieces) {
    const points = l.points.map(([x, y]) => [x + container.x, y + container.y]);
    points.forEach((point, i) => {
      if (last === null) return go("M", point);
      if (Math.hypot(point[0] - last[0], point[1] - last[1]) < 0.05) return undefined;
      const next = points[i + 1];
      if (l.square && next) {
        const reach = Math.min(
          6,
          Math.hypot(point[0] - last[0], point[1] - last[1]) / 2,
          Math.hypot(next[0] - point[0], next[1] - point[1]) / 2,
        );
        go("L", toward(point, last, reach));
        return go("Q", point, toward(point, next, reach));
      }
      if (Math.abs(point[0] - last[0]) < 0.5 || l.square) return go("L", point);
      const middle = (last[1] + point[1]) / 2;
      return go("C", [last[0], middle], [point[0], middle], point);
    });
  }
  return d;
}
function toward([x, y], [u, v], length) {
  const distance = Math.hypot(u - x, v - y) || 1;
  return [x + ((u - x) * length) / distance, y + ((v - y) * length) / distance];
}

const SHADES = 7; // of the colours of a gradient, from the smallest to the largest, which are in the style sheet
/** Where a norm stands between the smallest, 0, and the largest, 1. */
function part(norm) {
  const [low, high] = data.range.map(Math.log);
  return high > low ? Math.max(0, Math.min(1, (Math.log(norm) - low) / (high - low))) : 1;
}
/** The class that gives a norm its colour; zero and what is no number have colours and dashes of their own. */
function heat(norm) {
  if (typeof norm === "string") return `gradient ${norm}`;
  return norm > 0 ? `gradient shade${Math.round(part(norm) * (SHADES - 1))}` : "gradient zero";
}
const number = (norm) =>
  typeof norm === "string" ? { nan: "not a number", inf: "infinite" }[norm] : String(Number(norm.toPrecision(3)));

let drawn = { items: [], edges: [] },
  elements = new Map(),
  lines = [],
  focus = null;

function draw() {
  drawn = layout();
  elements = new Map();
  lines = [];
  const frames = make("g"),
    edges = make("g"),
    tops = make("g"),
    labels = make("g", { class: "labels" });
  for (const item of drawn.items) {
    if (item.kind === "row") continue;
    const open = item.isGroup && item.open;
    const element = make("g", {
      class: `item ${item.isGroup ? "group" : "box"} ${item.kind}${open ? " open" : ""}${item.backward ? " backward" : ""}`,
      "data-key": item.key,
      "data-id": item.id,
      transform: `translate(${round(item.x)} ${round(item.y)})`,
    });
    const shape = {
      width: round(item.width),
      height: round(item.height),
      rx: item.kind === "input" ? round(item.height / 2) : SHARP.includes(item.kind) ? 0 : 6,
    };
    if (item.isGroup && !open) element.append(make("rect", { ...shape, x: 3, y: 3, class: "under" }));
    element.append(make("rect", { ...shape, class: "shape" }));
    if (item.gradient !== null && !open) {
      element.append(make("rect", { x: 1, y: 3, width: 5, height: round(item.height - 6), class: heat(item.gradient) }));
    }
    const above = make("g", {
      "data-key": item.key,
      class: `over ${item.kind}`,
      transform: element.getAttribute("transform"),
    });
    if (framed(item) && open) {
      const before = item.titleAt + 34 + textWidth(item.title, "600 12px"),
        line = item.lines.join(", ");
      above.append(make("text", { x: round(item.titleAt + 12), y: 18, class: "title" }, "▾ " + item.title));
      if (line && textWidth(line, "10px") < item.width - before - 10)
        above.append(make("text", { x: round(before), y: 18 }, line));
    } else if (!open) {
      const middle = round(item.width / 2);
      element.append(make("text", { x: middle, y: 16, class: "title middle" }, (item.isGroup ? "▸ " : "") + item.title));
      words(item).forEach((line, i) => element.append(make("text", { x: middle, y: 30 + 13 * i, class: "middle" }, line)));
    }
    stripsOf(item).forEach((strip, i) => above.append(heatStrip(item, strip, i)));
    element.setAttribute("tabindex", "-1");
    element.setAttribute("role", item.isGroup && !item.fixed ? "button" : "img");
    element.setAttribute("aria-label", [item.title, ...item.lines].join(", "));
    if (item.isGroup && !item.fixed) element.setAttribute("aria-expanded", String(item.open));
    elements.set(item.key, element);
    (open ? frames : tops).append(element);
    if (above.firstChild) labels.append(above);
  }
  for (const edge of drawn.edges) {
    const [container, last] = edge.pieces.at(-1),
      end = last.points.at(-1);
    const [x, y] = [round(container.x + end[0]), round(container.y + end[1])];
    const arrow = make("g", { class: `edge ${edge.kind}`, "data-from": edge.from.id, "data-to": edge.to.id });
    const wide = edge.gradient > 0 ? 1 + 4 * part(edge.gradient) : 1,
      half = round(Math.max(3.5, 1.3 * wide)); // as is the tip
    const line = make("path", { class: "line", d: path(edge) });
    const tip = make("path", { class: "tip", d: `M${round(x - half)} ${round(y - 2 * half)}h${2 * half}L${x} ${y}Z` });
    if (edge.gradient !== null) {
      arrow.setAttribute("class", `edge ${edge.kind} ${heat(edge.gradient)}`);
      if (edge.gradient > 0) line.style.strokeWidth = `${wide.toFixed(1)}px`;
    }
    arrow.append(line, tip);
    // What a colour tells needs no number; the card has it.
    const text = edge.gradient !== null ? "" : edge.label || (edge.count > 1 && !edge.to.isGroup ? `×${edge.count}` : "");
    if (text) arrow.append(make("text", { x: x + 6, y: y - 8 }, text));
    edges.append(arrow);
    lines.push([edge, arrow]);
  }
  view.replaceChildren(frames, edges, tops, labels);
  const first = focus && elements.has(focus) ? focus : drawn.items.find((item) => elements.has(item.key))?.key;
  if (first) elements.get(first).setAttribute("tabindex", "0");
  mark();
}

/** A row of colours under a loop: one a time step, or the largest of each few. */
function heatStrip(item, strip, i) {
  const { norms } = strip,
    group = make("g", { class: "strip" }),
    cells = Math.min(norms.length, 120),
    across = (item.width - 24) / cells;
  const y = item.height - 6 - (stripsOf(item).length - i) * (GAP.strip + 14) + 12;
  group.append(make("text", { x: 12, y: y - 3 }, stripTitle(strip)));
  for (let k = 0; k < cells; k++) {
    const from = Math.floor((k * norms.length) / cells),
      to = Math.max(from + 1, Math.floor(((k + 1) * norms.length) / cells));
    const few = norms.slice(from, to),
      norm = few.find((value) => typeof value === "string") ?? Math.max(...few);
    const cell = make("rect", {
      x: round(12 + k * across),
      y,
      width: round(across) + 0.2,
      height: GAP.strip,
      class: heat(norm),
    });
    cell.append(make("title", {}, `t = ${to - from > 1 ? `${from} … ${to - 1}` : from}: ${number(norm)}`));
    group.append(cell);
  }
  return group;
}

// --- pan and zoom ---------------------------------------------------------------------------------------------------

const at = { x: 0, y: 0, scale: 1 };
let untouched = true; // then the picture follows the size of the window
function move() {
  untouched = false;
  view.setAttribute("transform", `translate(${round(at.x)} ${round(at.y)}) scale(${at.scale.toFixed(4)})`);
  find("scale").textContent = `${Math.round(at.scale * 100)} %`;
}
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const scale = Math.min(4, Math.max(0.02, at.scale * factor));
  at.x = x - ((x - at.x) * scale) / at.scale;
  at.y = y - ((y - at.y) * scale) / at.scale;
  at.scale = scale;
  move();
}
/** Show the whole picture, or at a scale of at least `smallest` as much of it as there is room for, from the top. */
function fit(smallest = 0.02) {
  const room = 24,
    across = canvas.clientWidth - 2 * room,
    down = canvas.clientHeight - 2 * room;
  at.scale = Math.max(smallest, Math.min(1, across / root.width, down / root.height));
  const left = canvas.clientWidth - room - root.width * at.scale; // where the right edge is seen
  const first = drawn.items.filter((item) => !(item.isGroup && item.open)).sort((a, b) => a.y - b.y || a.x - b.x)[0];
  at.x = left > room ? (left + room) / 2 : Math.max(left, Math.min(room, canvas.clientWidth / 2 - (first?.x ?? 0) * at.scale));
  at.y = Math.max(room, (canvas.clientHeight - root.height * at.scale) / 2);
  move();
}
const READABLE = 0.5;
function begin() {
  fit(READABLE);
  untouched = true;
}
function reveal(item, always = false) {
  const x = at.x + (item.x + item.width / 2) * at.scale,
    y = at.y + (item.y + Math.min(item.height, 60) / 2) * at.scale;
  const seen = x > 40 && y > 40 && x < canvas.clientWidth - 40 && y < canvas.clientHeight - 40;
  if (seen && !always) return;
  if (always && at.scale < 0.6) at.scale = 0.9;
  at.x = canvas.clientWidth / 2 - (item.x + item.width / 2) * at.scale;
  at.y = canvas.clientHeight / 2 - (item.y + Math.min(item.height, 60) / 2) * at.scale;
  move();
}

// --- opening and closing --------------------------------------------------------------------------------------------

function toggle(item) {
  if (!item.isGroup || item.fixed) return;
  const before = [item.x * at.scale + at.x, item.y * at.scale + at.y];
  item.open = !item.open;
  focus = item.key;
  draw();
  at.x = before[0] - item.x * at.scale; // what was clicked stays where it is
  at.y = before[1] - item.y * at.scale;
  move();
  elements.get(item.key)?.focus({ preventScroll: true });
}
function all(open) {
  for (const group of groups) if (!group.fixed) group.open = open;
  draw();
  fit(READABLE);
}

// --- the card -------------------------------------------------------------------------------------------------------

function show(item, x, y) {
  card.replaceChildren();
  const title = document.createElement("h2"),
    list = document.createElement("dl");
  title.textContent = item.title;
  card.append(title);
  const facts = [["kind", item.kind], ...item.facts];
  if (item.gradient !== null) facts.push(["norm of the gradient", number(item.gradient)]);
  if (item.isGroup) facts.push(["boxes inside", item.inside.toLocaleString("en")]);
  for (const [name, way] of [
    ["from", ["to", "from"]],
    ["to", ["from", "to"]],
  ]) {
    const edges = drawn.edges.filter((edge) => edge[way[0]] === item);
    const few = edges
      .slice(0, 4)
      .map((edge) => edge[way[1]].title + (edge.gradient === null ? "" : ` (gradient ${number(edge.gradient)})`));
    if (edges.length) facts.push([name, few.join(", ") + (edges.length > 4 ? ` and ${edges.length - 4} more` : "")]);
  }
  for (const [name, value] of facts) {
    const term = document.createElement("dt"),
      text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    list.append(term, text);
  }
  card.append(list);
  card.hidden = false;
  const bounds = card.getBoundingClientRect();
  card.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - bounds.width - 4))}px`;
  card.style.top = `${y + 18 + bounds.height < innerHeight ? y + 18 : Math.max(4, y - bounds.height - 12)}px`;
  near(item);
}
function hide() {
  card.hidden = true;
  near(null);
}
/** The arrows that start or end at an item stand out. */
function near(item) {
  for (const [edge, line] of lines) line.classList.toggle("near", item !== null && (edge.from === item || edge.to === item));
}

// --- search ---------------------------------------------------------------------------------------------------------

const search = find("search");
let hits = [],
  current = -1;
const haystack = new Map(
  [...boxes, ...groups]
    .filter((item) => !item.fixed)
    .map((item) => [item, [item.title, ...item.lines, ...item.facts.flat()].join("\n").toLowerCase()]),
);
function look() {
  const wanted = search.value.trim().toLowerCase();
  hits = wanted ? [...haystack].filter(([, text]) => text.includes(wanted)).map(([item]) => item) : [];
  hits.sort((a, b) => a.order - b.order);
  current = -1;
  mark();
}
function mark() {
  const searching = search.value.trim() !== "",
    found = new Set(hits.map((item) => shown(item).key));
  view.classList.toggle("searching", searching);
  for (const [key, element] of elements) element.classList.toggle("found", found.has(key));
  const chosen = hits[current];
  for (const [key, element] of elements) element.classList.toggle("current", chosen !== undefined && shown(chosen).key === key);
  find("hits").textContent = !searching
    ? ""
    : hits.length
      ? current < 0
        ? `${hits.length} found`
        : `${current + 1} of ${hits.length}`
      : "nothing found";
}
function next(step) {
  if (!hits.length) return;
  current = current < 0 && step < 0 ? hits.length - 1 : (current + step + hits.length) % hits.length;
  const item = hits[current];
  for (let group = item.parent; group !== root; group = group.parent) group.open = true;
  draw();
  reveal(item, true);
}

// --- pointer and keyboard -------------------------------------------------------------------------------------------

const itemOf = (target) => items.get(target.closest?.("[data-key]")?.dataset.key) ?? null;
let drag = null;
const pointers = new Map();
canvas.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  drag = { x: event.clientX, y: event.clientY, moved: false };
});
addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
  if (pointers.size === 2) {
    // two fingers: the picture grows with their distance
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1],
      bounds = canvas.getBoundingClientRect();
    const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
    zoom(
      Math.hypot(event.clientX - other[0], event.clientY - other[1]) / (was || 1),
      other[0] - bounds.left,
      other[1] - bounds.top,
    );
  } else if (drag.moved || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4) {
    at.x += drag.moved ? dx : event.clientX - drag.x;
    at.y += drag.moved ? dy : event.clientY - drag.y;
    drag.moved = true;
    hide();
    move();
  }
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, (event) => pointers.delete(event.pointerId));
canvas.addEventListener("click", (event) => {
  if (drag?.moved) return;
  const item = itemOf(event.target);
  if (!item) return hide();
  choose(item.key);
  if (item.isGroup) toggle(item);
  else show(item, event.clientX, event.clientY);
});
canvas.addEventListener("pointerover", (event) => {
  const item = itemOf(event.target);
  if (item && !pointers.size) show(item, event.clientX, event.clientY);
  else if (!item) hide();
});
canvas.addEventListener("pointerleave", hide);
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const bounds = canvas.getBoundingClientRect(),
      lines = event.deltaMode === 1 ? 30 : 1;
    zoom(
      Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) / 300),
      event.clientX - bounds.left,
      event.clientY - bounds.top,
    );
  },
  { passive: false },
);

function choose(key) {
  view.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  elements.get(key)?.setAttribute("tabindex", "0");
  focus = key;
}
view.addEventListener("focusin", (event) => {
  const item = itemOf(event.target);
  if (!item || !event.target.matches(":focus-visible")) return;
  choose(item.key);
  reveal(item);
  const bounds = event.target.getBoundingClientRect();
  show(item, bounds.right - 14, Math.max(bounds.top, 0) + 10);
});
view.addEventListener("focusout", hide);

/** The nearest item in a direction, sideways distance counting double. */
function neighbour(item, [dx, dy]) {
  const middle = (i) => [i.x + i.width / 2, i.isGroup && i.open ? i.y + 10 : i.y + i.height / 2],
    [x, y] = middle(item);
  let best = null,
    least = Infinity;
  for (const other of drawn.items) {
    if (other === item || !elements.has(other.key)) continue;
    const [u, v] = middle(other),
      along = (u - x) * dx + (v - y) * dy,
      across = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
    if (along > 1 && along + 2 * across < least) ((least = along + 2 * across), (best = other));
  }
  return best;
}
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === search) {
    if (event.key === "Enter") next(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") ((search.value = ""), look(), search.blur());
    else return;
    event.preventDefault();
    return;
  }
  const item = view.contains(event.target) ? itemOf(event.target) : null;
  if (ARROWS[event.key]) {
    const [dx, dy] = ARROWS[event.key];
    if (item && !event.shiftKey) elements.get(neighbour(item, [dx, dy])?.key)?.focus({ preventScroll: true });
    else ((at.x -= 60 * dx), (at.y -= 60 * dy), move());
  } else if ((event.key === "Enter" || event.key === " ") && item) toggle(item);
  else if (event.key === "Escape") hide();
  else if (event.target.closest?.("button, summary")) return;
  else if (event.key === "+" || event.key === "=") zoom(1.25);
  else if (event.key === "-") zoom(0.8);
  else if (event.key === "0") fit();
  else if (event.key === "1") zoom(1 / at.scale);
  else if (event.key === "/") search.focus();
  else return;
  event.preventDefault();
});
search.addEventListener("input", look);
const theme = find("theme"),
  THEMES = ["auto", "light", "dark"];
const actions = {
  in: () => zoom(1.25),
  out: () => zoom(0.8),
  fit: () => fit(),
  open: () => all(true),
  close: () => all(false),
  next: () => next(1),
  theme: () => {
    const chosen = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3];
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    theme.textContent = `theme: ${chosen}`;
  },
};
for (const [id, action] of Object.entries(actions)) find(id).addEventListener("click", action);
for (const id of ["open", "close"]) find(id).hidden = !groups.some((group) => !group.fixed);

// --- legend ---------------------------------------------------------------------------------------------------------

function legend() {
  const kinds = [
    ...boxes.map((box) => box.kind),
    ...groups.map((group) => "group " + group.kind),
    ...data.arrows.map((arrow) => "edge " + arrow.kind),
  ];
  const seen = new Set(kinds);
  for (const [kind, meaning] of data.legend) {
    if (!seen.has(kind)) continue;
    const entry = document.createElement("li"),
      picture = make("svg", { width: 34, height: 18, "aria-hidden": "true" });
    const group = make("g", {
      class: kind.startsWith("edge ") ? kind : `item ${kind.startsWith("group ") ? kind + " open" : "box " + kind}`,
    });
    if (kind.startsWith("edge "))
      group.append(make("path", { class: "line", d: "M2 9H24" }), make("path", { class: "tip", d: "M23 5.5v7L30 9Z" }));
    else
      group.append(
        make("rect", {
          x: 2,
          y: 2,
          width: 28,
          height: 14,
          rx: kind === "input" ? 7 : SHARP.includes(kind) ? 0 : 4,
          class: "shape",
        }),
      );
    picture.append(group);
    entry.append(picture, meaning);
    find("kinds").append(entry);
  }
  const norms = data.range;
  if (!norms) return;
  const swatches = make("svg", { width: 20 * SHADES, height: 12, "aria-hidden": "true" });
  for (let i = 0; i < SHADES; i++)
    swatches.append(make("rect", { x: 20 * i, y: 0, width: 20, height: 12, class: `gradient shade${i}` }));
  find("range").append(swatches, `norm of the gradient, ${number(norms[0])} to ${number(norms[1])}`);
  find("range").hidden = false;
}

addEventListener("resize", () => untouched && begin());
legend();
draw();
begin();
document.documentElement.dataset.ready = "yes"; // for those who wait for the picture
