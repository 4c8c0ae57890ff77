"use strict";
// The layout of the page of one picture: where the boxes stand that are open, and how the lines between them run.
// It comes before page.js, in one block with it, and gives it `data`, `boxes`, `groups`, `items`, `root` and `layout()`.

const data = JSON.parse(document.getElementById("data").textContent);
const GAP = { across: 18, down: 30, lane: 9, pad: 14, head: 22, strip: 14 };

const MOST_BENDS = 10000;
const least = (numbers) => numbers.reduce((a, b) => Math.min(a, b), Infinity);
const most = (numbers) => -least(numbers.map((n) => -n));

// --- the picture: boxes and groups are items; a group's parent, and a box's group, is a number or null ---------------

const boxes = data.boxes.map((box, i) => ({ ...box, key: "b" + i, order: i }));
const groups = data.groups.map((group, i) => ({
  ...group,
  key: "g" + i,
  column: i,
  isGroup: true,
  order: Infinity,
  inside: 0,
}));
const root = { key: "root", isGroup: true, kind: "root", open: true, title: "", lines: [], parent: null };
const items = new Map([...boxes, ...groups].map((item) => [item.key, item]));
for (const item of [...boxes, ...groups]) {
  const above = item.isGroup ? item.parent : item.group;
  item.parent = above === null ? root : groups[above];
}
for (const box of boxes) {
  for (let at = box.parent; at !== root; at = at.parent) {
    at.order = Math.min(at.order, box.order);
    at.inside += 1;
  }
}
for (const group of groups) group.within = []; // the strips of all loops in it
for (const group of groups) for (let at = group; at !== root; at = at.parent) at.within.push(...group.strips);
/** The strips of norms that are drawn in an item: of a closed group also those of the loops that it hides. */
const stripsOf = (item) => (item.isGroup && !item.open ? item.within : item.strips) ?? [];
const stripTitle = ({ name, norms }) => `${name}: ‖∂L/∂h‖, t = 0 … ${norms.length - 1}`;
/** How wide the strips of an item have to be: they have cells that can be told apart, and titles. */
const stripWidth = (item) => stripsOf(item).reduce((w, strip) => Math.max(w, textWidth(stripTitle(strip), "10px") + 24), 0);

/** The outermost closed group around an item, or the item itself: what stands for it in the picture. */
function shown(item) {
  let found = item;
  for (let at = item.parent; at !== root; at = at.parent) if (!at.open) found = at;
  return found;
}
function depth(item) {
  let n = 0;
  for (let at = item; at !== root; at = at.parent) n += 1;
  return n;
}
/** The child of `container` in which an item lies. */
function childOf(container, item) {
  while (item.parent !== container) item = item.parent;
  return item;
}
function common(a, b) {
  const above = new Set();
  for (let at = a.parent; at; at = at.parent) above.add(at);
  let at = b.parent;
  while (!above.has(at)) at = at.parent;
  return at;
}
const framed = (item) => item.isGroup && !["row", "root", "gap"].includes(item.kind);

// --- how large a box is ---------------------------------------------------------------------------------------------

const pen = document.createElement("canvas").getContext("2d");
const FONT = getComputedStyle(document.body).fontFamily;
const widths = new Map();
function textWidth(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    pen.font = `${font} ${FONT}`;
    widths.set(key, pen.measureText(text).width);
  }
  return widths.get(key);
}
function words(item) {
  const lines = [...item.lines];
  if (item.isGroup && !item.open) lines.push(`${item.inside.toLocaleString("en")} ${item.inside === 1 ? "box" : "boxes"}`);
  return lines;
}
function measure(item) {
  const lines = words(item);
  const title = textWidth(item.title, "600 12px") + (item.isGroup ? 18 : 0);
  const strips = stripsOf(item).length;
  const wide = Math.max(title, stripWidth(item), ...lines.map((line) => textWidth(line, "10px")));
  item.width = Math.ceil(Math.max(strips ? 200 : 36, wide) + 18);
  item.height = 24 + 13 * lines.length + (strips ? strips * (GAP.strip + 14) + 4 : 0);
}

// --- layout: each open group by itself, the innermost first; to the one around it, it is a large box with ports --------

/** All that is drawn: {items, edges}, each with its place. */
function layout() {
  const visible = new Set();
  for (const item of [...boxes, ...groups]) if (shown(item) === item) visible.add(item);
  for (const group of groups) if (group.open && !group.inside) visible.delete(group);
  const containers = [root, ...groups.filter((group) => visible.has(group) && group.open)];
  for (const container of containers) Object.assign(container, { children: [], links: new Map(), ports: new Map() });
  for (const item of visible) {
    item.parent.children.push(item);
    if (!(item.isGroup && item.open)) measure(item);
  }

  const edges = new Map();
  for (const { tail, head, kind, count, label, gradient } of data.arrows) {
    const from = shown(boxes[tail]),
      to = shown(boxes[head]);
    if (from === to && (kind !== "carry" || (from.isGroup && from.kind !== "loop"))) continue;
    const key = `${from.key} ${to.key} ${kind}`;
    const edge = edges.get(key) ?? { key, from, to, kind, label, count: 0, gradient: null, pieces: [] };
    edge.count += count;
    edge.gradient = together(edge.gradient, gradient);
    edges.set(key, edge);
  }
  for (const edge of edges.values()) edge.pieces = pieces(edge);

  containers.sort((a, b) => depth(b) - depth(a));
  for (const container of containers) arrange(container);
  root.x = root.y = 0;
  for (const container of containers.reverse()) {
    for (const item of container.children) {
      item.x = container.x + item.left;
      item.y = container.y + item.top;
    }
  }
  return { items: [...visible].sort((a, b) => depth(a) - depth(b)), edges: [...edges.values()] };
}

/** The norm of two parts, of which either may be unknown (null) or no number (a text). */
function together(a, b) {
  if (a === null || b === null) return a ?? b;
  return typeof a === "string" ? a : typeof b === "string" ? b : Math.hypot(a, b);
}
/** The links that make up an edge, one in each container that it runs through. A port is named by where the edge starts. */
function pieces(edge) {
  const meet = common(edge.from, edge.to),
    out = [],
    into = [];
  const port = `${edge.from.key} ${edge.kind}`;
  let from = edge.from;
  for (; from.parent !== meet; from = from.parent) out.push([from.parent, link(from.parent, from, null, port, edge)]);
  const down = [];
  for (let at = edge.to; at.parent !== meet; at = at.parent) down.unshift(at);
  for (const at of down) into.push([at.parent, link(at.parent, null, at, port, edge)]);
  return [...out, [meet, link(meet, from, down.length ? down[0].parent : edge.to, port, edge)], ...into];
}
/** A link between children of a container, or from or to its edge (null), made once for all edges that share it. */
function link(container, from, to, port, edge) {
  const key = `${from ? from.key : "in"} ${to ? to.key : "out"} ${port} ${edge.kind}`;
  if (!container.links.has(key)) container.links.set(key, { from, to, port, kind: edge.kind, points: [], square: false });
  return container.links.get(key);
}

function arrange(container) {
  if (!container.children.length) return Object.assign(container, { width: 0, height: 0 });
  const links = [...container.links.values()];
  const size = container.kind === "row" ? arrangeRow(container, links) : arrangeRanks(container, links);
  return Object.assign(container, size);
}

/** Where a link meets a child: at its port if that is an open group, else near the middle of the box. */
function meets(item, port, way, aside = 0) {
  const found = item.isGroup && item.open ? item.ports.get(`${way} ${port}`) : undefined;
  return found ?? item.width / 2 + aside;
}

/** Columns from left to right, such as time steps. What leads from one to another leaves it below, and enters above. */
function arrangeRow(container, links) {
  const columns = container.children.sort((a, b) => a.column - b.column);
  const place = new Map(columns.map((item, i) => [item, i]));
  const gutters = columns.map(() => []),
    beside = links.filter((l) => l.from && l.to);
  let lanes = 0;
  for (const l of beside) {
    const forward = place.get(l.to) > place.get(l.from);
    l.gutter = forward ? place.get(l.to) - 1 : place.get(l.to);
    l.lane = gutters[l.gutter].push(l) - 1;
    lanes = Math.max(lanes, l.lane + 1);
  }
  const entries = new Set(links.filter((l) => !l.from).map((l) => l.port));
  const exits = new Set(links.filter((l) => !l.to).map((l) => l.port));
  const top = GAP.lane * (lanes + entries.size + 1),
    tallest = most(columns.map((item) => item.height));
  const bottom = top + tallest;
  let left = 0;
  columns.forEach((item, i) => {
    item.left = left;
    item.top = top;
    left += item.width + GAP.across + GAP.lane * (gutters[i].length + 1);
  });
  const width = Math.max(0, left - GAP.across - GAP.lane);
  for (const l of beside) {
    const x = columns[l.gutter].left + columns[l.gutter].width + GAP.across / 2 + GAP.lane * (l.lane + 0.5);
    const start = l.from.left + meets(l.from, l.port, "out"),
      end = l.to.left + meets(l.to, l.port, "in");
    const low = bottom + GAP.lane * (l.lane + 1),
      high = top - GAP.lane * (l.lane + 1);
    l.square = true;
    l.points = [
      [start, l.from.top + l.from.height],
      [start, low],
      [x, low],
      [x, high],
      [end, high],
      [end, l.to.top],
    ];
  }
  // What enters runs above the columns, and what leaves below them, each along a lane of its own.
  let lane = 0;
  for (const [ports, way] of [
    [entries, "in"],
    [exits, "out"],
  ]) {
    lane = lanes;
    for (const port of ports) {
      lane += 1;
      const mine = links.filter((l) => l.port === port && (way === "in" ? !l.from : !l.to));
      const xs = mine.map((l) =>
        way === "in" ? l.to.left + meets(l.to, port, "in") : l.from.left + meets(l.from, port, "out"),
      );
      const x = mine.length === 1 ? xs[0] : xs.reduce((a, b) => a + b, 0) / xs.length + 3 * (lane % 5);
      container.ports.set(`${way} ${port}`, x);
      mine.forEach((l, i) => {
        const y = way === "in" ? top - GAP.lane * lane : bottom + GAP.lane * lane;
        l.square = true;
        l.points =
          way === "in"
            ? [
                [x, 0],
                [x, y],
                [xs[i], y],
                [xs[i], l.to.top],
              ]
            : [
                [xs[i], l.from.top + l.from.height],
                [xs[i], y],
                [x, y],
                [x, bottom + GAP.lane * (lanes + exits.size + 1)],
              ];
      });
    }
  }
  return { width, height: bottom + GAP.lane * (lanes + exits.size + 1) };
}

/** Ranks from top to bottom, in the manner of Sugiyama, Tagawa and Toda (1981). */
function arrangeRanks(container, links) {
  const nodes = new Map(),
    node = (key, item, width, height) => {
      if (!nodes.has(key)) nodes.set(key, { key, item, width, height, out: [], in: [], rank: 0, x: 0 });
      return nodes.get(key);
    };
  for (const item of container.children.sort((a, b) => a.order - b.order)) node(item.key, item, item.width, item.height);
  const ends = links.map((l) => [
    l.from ? nodes.get(l.from.key) : node("in " + l.port, null, GAP.lane, 0),
    l.to ? nodes.get(l.to.key) : node("out " + l.port, null, GAP.lane, 0),
  ]);
  // What goes round a folded loop runs back to the boxes of its state, which stand at the top.
  const round = new Set(links.flatMap((l, i) => (l.from && l.kind === "carry" && l.to?.kind === "carry" ? [i] : [])));
  const back = backward([...nodes.values()], ends, round);
  let forward = links.map((_, i) => i).filter((i) => !back.has(i));
  for (const i of forward) {
    ends[i][0].out.push(ends[i][1]);
    ends[i][1].in.push(ends[i][0]);
  }
  rank([...nodes.values()]);
  // Too many bends take too long: then the longest lines run beside the boxes, as those do that run back.
  const span = (i) => ends[i][1].rank - ends[i][0].rank - 1;
  let bent = forward.reduce((sum, i) => sum + span(i), 0);
  for (const i of bent > MOST_BENDS ? [...forward].sort((a, b) => span(b) - span(a)) : []) {
    if (bent <= MOST_BENDS) break;
    bent -= span(i);
    back.add(i);
  }
  forward = forward.filter((i) => !back.has(i));

  // A link past several ranks goes through a bend in each; those that start at one box share theirs.
  const ranks = [];
  const put = (n) => ((ranks[n.rank] ??= []).push(n), n);
  for (const n of nodes.values()) Object.assign(put(n), { up: [], down: [], pulls: [] });
  // The backward pass of a loop stands below the loop, though no line may lead straight from one to the other.
  const loops = [...nodes.values()].filter((n) => n.item?.isGroup && n.item.kind === "loop");
  const [before, after] = [loops.filter((n) => !isBackward(n)), loops.filter(isBackward).reverse()];
  before.forEach((n, k) => k < after.length && (n.pulls.push(after[k]), after[k].pulls.push(n)));
  const ways = new Map(),
    bends = new Map(),
    joined = new Set();
  const join = (a, b) => {
    const key = a.key + "\n" + b.key;
    if (!joined.has(key)) (joined.add(key), a.down.push(b), b.up.push(a));
  };
  for (const i of forward) {
    const [start, end] = ends[i],
      way = [start];
    for (let r = start.rank + 1; r < end.rank; r++) {
      const key = `${start.key} ${links[i].kind} ${r}`;
      if (!bends.has(key))
        bends.set(
          key,
          put({ key: "bend " + key, item: null, width: GAP.lane, height: 0, rank: r, bend: true, up: [], down: [] }),
        );
      way.push(bends.get(key));
    }
    way.push(end);
    for (let k = 1; k < way.length; k++) join(way[k - 1], way[k]);
    ways.set(i, way);
  }
  order(ranks);
  align(ranks);

  // Heights: between two ranks there is room for the lanes of what runs back.
  const lanesAt = ranks.map(() => 0);
  lanesAt.push(0);
  const backs = [...back].sort(
    (i, j) => Math.abs(ends[i][0].rank - ends[i][1].rank) - Math.abs(ends[j][0].rank - ends[j][1].rank),
  );
  for (const i of backs) for (const r of [ends[i][0].rank + 1, ends[i][1].rank]) lanesAt[r] += 1;
  const frame = framed(container) ? GAP.pad : container === root ? 0 : 2;
  const title = framed(container) ? textWidth(container.title, "600 12px") + 36 : 0;
  let y = frame + (framed(container) ? GAP.head : 0) + (lanesAt[0] ? GAP.lane * lanesAt[0] + 6 : 0);
  const tops = [],
    bottoms = [];
  ranks.forEach((row, r) => {
    const high = Math.max(...row.map((n) => n.height));
    tops.push(y);
    bottoms.push(y + high);
    // Lines that go far to the side need a corridor that is not too flat.
    const spread = Math.max(0, ...row.flatMap((n) => n.down.map((m) => Math.abs(m.x - n.x))));
    const room = row.every((n) => !n.item) && high === 0 ? 6 : GAP.down + Math.min(60, spread / 14);
    y += high + (r < ranks.length - 1 ? room : 0) + GAP.lane * lanesAt[r + 1];
  });
  const strips = stripsOf(container).length * (GAP.strip + 14);
  const height = y + (lanesAt[ranks.length] ? 6 : 0) + frame + strips;

  const all = ranks.flat();
  const low = least(all.map((n) => n.x - n.width / 2)),
    high = most(all.map((n) => n.x + n.width / 2));
  const beside = backs.length ? GAP.lane * (backs.length + 1) : 0;
  const strip = strips ? Math.max(180, stripWidth(container)) : 0;
  const shift = frame - low + Math.max(0, (Math.max(title, strip) - (high - low + beside + 2 * frame)) / 2);
  const entries = all.filter((n) => n.key.startsWith("in ")).map((n) => n.x + shift);
  container.titleAt = titleAt(title, Math.max(high - low + beside + 2 * frame, title), entries);
  const width = Math.max(high + shift + beside + frame, container.titleAt + title, strip);
  for (const n of all) {
    n.x += shift;
    const middle = (tops[n.rank] + bottoms[n.rank]) / 2;
    n.top = n.item ? middle - n.height / 2 : tops[n.rank];
    if (n.item) Object.assign(n.item, { left: n.x - n.width / 2, top: n.top });
    else if (!n.bend) container.ports.set(n.key, n.x);
  }

  // Lines: what ends at one box is spread over its top in the order in which it comes from.
  const arriving = new Map();
  for (const [i, way] of ways) {
    const end = way.at(-1);
    if (!arriving.has(end)) arriving.set(end, []);
    arriving.get(end).push([i, way.at(-2).x]);
  }
  const aside = new Map();
  for (const [end, list] of arriving) {
    list.sort((a, b) => a[1] - b[1]);
    const step = Math.min(16, (end.width * 0.6) / list.length);
    list.forEach(([i], k) => aside.set(i, end.item ? (k - (list.length - 1) / 2) * step : 0));
  }
  for (const [i, way] of ways) {
    const l = links[i],
      points = [];
    way.forEach((n, k) => {
      let x = n.x;
      if (n.item && k === 0) x = n.x - n.width / 2 + meets(n.item, l.port, "out");
      if (n.item && k === way.length - 1) x = n.x - n.width / 2 + meets(n.item, l.port, "in", aside.get(i));
      if (k > 0) points.push([x, tops[n.rank]]);
      if (k > 0 && n.item && n.top > tops[n.rank]) points.push([x, n.top]);
      if (k === 0 && n.item) points.push([x, n.top + n.height]);
      if (k < way.length - 1) points.push([x, bottoms[n.rank]]);
    });
    if (!l.from) points.unshift([points[0][0], 0]);
    if (!l.to) points.push([points.at(-1)[0], height]);
    l.points = points;
  }
  const used = lanesAt.map(() => 0),
    side = shift + high + GAP.lane;
  backs.forEach((i, k) => {
    const l = links[i],
      [start, end] = ends[i];
    const from = start.item ? start.x - start.width / 2 + meets(start.item, l.port, "out", start.width / 4) : start.x;
    const to = end.item ? end.x - end.width / 2 + meets(end.item, l.port, "in", end.width / 4) : end.x;
    const below = bottoms[start.rank] + GAP.lane * ++used[start.rank + 1];
    const above = tops[end.rank] - GAP.lane * ++used[end.rank];
    const lane = side + GAP.lane * k;
    l.square = true;
    l.points = [
      [from, start.top + start.height],
      [from, below],
      [lane, below],
      [lane, above],
      [to, above],
      [to, end.top],
    ];
  });
  return { width, height };
}

/** Where a title starts beside the lines that come in from above: on the left if it can, else in the first gap. */
function titleAt(width, room, lines) {
  const taken = lines.filter((x) => x < room).sort((a, b) => a - b);
  const starts = [0, ...taken.map((x) => x + 4)];
  return width ? starts.find((x) => !taken.some((line) => line > x + 6 && line < x + width - 4)) : 0;
}

/** The links that would close a circle, found by walking down from what nothing leads to; `known` are taken for such. */
function backward(nodes, ends, known) {
  const out = new Map(nodes.map((n) => [n, []])),
    entered = new Set();
  ends.forEach(([from, to], i) => {
    if (known.has(i)) return;
    out.get(from).push([to, i]);
    entered.add(to);
  });
  const state = new Map(),
    back = new Set(known);
  const starts = [...nodes.filter((n) => !entered.has(n)), ...nodes];
  for (const start of starts) {
    if (state.has(start)) continue;
    const stack = [[start, 0]];
    state.set(start, "open");
    while (stack.length) {
      const top = stack.at(-1),
        [n, k] = top;
      if (k === out.get(n).length) {
        state.set(n, "done");
        stack.pop();
        continue;
      }
      top[1] += 1;
      const [to, i] = out.get(n)[k];
      if (state.get(to) === "open") back.add(i);
      else if (!state.has(to)) {
        state.set(to, "open");
        stack.push([to, 0]);
      }
    }
  }
  return back;
}

const isBackward = (n) =>
  n.item !== null && (n.item.isGroup ? n.item.backward : ["backward", "gradient"].includes(n.item.kind));

/** Each box below all that leads to it; what nothing leads to, just above where it is first used. */
function rank(nodes) {
  const turn = turned(nodes);
  const waiting = new Map([...nodes, turn].map((n) => [n, n.in.length]));
  const done = [...nodes, turn].filter((n) => !n.in.length);
  for (let k = 0; k < done.length; k++) {
    for (const to of done[k].out) {
      to.rank = Math.max(to.rank, done[k].rank + 1);
      waiting.set(to, waiting.get(to) - 1);
      if (!waiting.get(to)) done.push(to);
    }
  }
  for (const n of turn.in) n.out.pop();
  for (const n of turn.out) n.in.pop();
  for (const n of nodes) if (!n.in.length && n.out.length) n.rank = least(n.out.map((m) => m.rank)) - 1;
  const inner = nodes.filter((n) => n.item).map((n) => n.rank);
  for (const n of nodes) {
    if (n.key.startsWith("in ")) n.rank = least(inner) - 1;
    if (n.key.startsWith("out ")) n.rank = most(inner) + 1;
  }
  const used = [...new Set(nodes.map((n) => n.rank))].sort((a, b) => a - b);
  const place = new Map(used.map((r, i) => [r, i]));
  for (const n of nodes) n.rank = place.get(n.rank);
}

/** A node that stands for the turn from the forward pass to the backward pass, so that the one is above the other. */
function turned(nodes) {
  const turn = { key: "turn", item: null, in: [], out: [], rank: 0 };
  const back = nodes.filter(isBackward);
  const isForward = (n) => n.item && n.in.length > 0 && !isBackward(n);
  if (back.some((n) => n.out.some((m) => m.item && !isBackward(m)))) return turn; // neither is above the other
  turn.out = back.filter((n) => !n.in.some(isBackward));
  if (turn.out.length) turn.in = nodes.filter((n) => isForward(n) && !n.out.some(isForward));
  for (const n of turn.in) n.out.push(turn);
  for (const n of turn.out) n.in.push(turn);
  return turn;
}

/** The order in each rank: by the middle of what each is joined to, up and down in turn, and the best that was seen. */
function order(ranks) {
  const number = () => ranks.forEach((row) => row.forEach((n, i) => (n.at = i)));
  const many = ranks.reduce((sum, row) => sum + row.length, 0);
  number();
  let best = ranks.map((row) => [...row]),
    fewest = crossings(ranks);
  for (let sweep = 0; sweep < (many > 4000 ? 4 : 12) && fewest; sweep++) {
    const down = sweep % 2 === 0;
    for (const row of down ? ranks : [...ranks].reverse()) {
      for (const n of row) {
        const near = down ? n.up : n.down;
        n.mean = near.length ? near.reduce((sum, m) => sum + m.at, 0) / near.length : n.at;
      }
      row.sort((a, b) => a.mean - b.mean || a.at - b.at).forEach((n, i) => (n.at = i));
    }
    const found = crossings(ranks);
    if (found < fewest) ((fewest = found), (best = ranks.map((row) => [...row])));
  }
  best.forEach((row, r) => (ranks[r] = row));
  number();
}
function crossings(ranks) {
  let count = 0;
  for (let r = 1; r < ranks.length; r++) {
    const ends = ranks[r - 1].flatMap((n) => n.down.map((m) => m.at).sort((a, b) => a - b));
    const tree = new Array(ranks[r].length + 1).fill(0); // counts by position, summed as Fenwick (1994) does
    ends.forEach((end, seen) => {
      let before = 0;
      for (let i = end + 1; i > 0; i -= i & -i) before += tree[i];
      count += seen - before;
      for (let i = end + 1; i < tree.length; i += i & -i) tree[i] += 1;
    });
  }
  return count;
}

/** Each box where the squared distance to its neighbours is least, in the given order and apart from each other. */
function align(ranks) {
  for (const row of ranks) {
    let x = 0;
    for (const n of row) {
      n.x = x + n.width / 2;
      x += n.width + GAP.across;
    }
    for (const n of row) n.x -= x / 2;
  }
  const pulled = (near) => {
    let sum = 0,
      weight = 0;
    for (const [m, w] of near) ((sum += w * m.x), (weight += w));
    return [sum / weight, weight];
  };
  for (let sweep = 0; sweep < 16; sweep++) {
    const down = sweep % 2 === 0;
    for (const row of down ? ranks : [...ranks].reverse()) {
      const wish = row.map((n) => {
        const joined = sweep > 11 ? [...n.up, ...n.down] : down ? n.up : n.down;
        const near = joined.map((m) => [m, n.bend && m.bend ? 8 : n.bend || m.bend ? 2 : 1]);
        for (const m of n.pulls ?? []) near.push([m, 20]);
        return near.length ? pulled(near) : [n.x, 0.01];
      });
      apart(row, wish);
    }
  }
}
/** The nearest positions to those wished that keep the order and the distances: a regression by pooling. */
function apart(row, wish) {
  const offsets = [];
  row.forEach((n, i) =>
    offsets.push(i ? offsets[i - 1] + (row[i - 1].width + n.width) / 2 + (n.bend && row[i - 1].bend ? 4 : GAP.across) : 0),
  );
  const pools = [];
  wish.forEach(([x, weight], i) => {
    pools.push({ sum: weight * (x - offsets[i]), weight, count: 1 });
    while (pools.length > 1) {
      const b = pools.at(-1),
        a = pools.at(-2);
      if (a.sum / a.weight <= b.sum / b.weight) break;
      pools.pop();
      Object.assign(a, { sum: a.sum + b.sum, weight: a.weight + b.weight, count: a.count + b.count });
    }
  });
  let i = 0;
  for (const pool of pools) for (let k = 0; k < pool.count; k++, i++) row[i].x = pool.sum / pool.weight + offsets[i];
}
