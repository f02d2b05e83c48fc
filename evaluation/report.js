"use strict";

// ------------------------------------------------------------------ the data

const data = JSON.parse(document.getElementById("data").textContent);

/** Decode numbers that report.py wrote as base64. */
function column({ type, bytes }) {
  const raw = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  return new globalThis[type](raw.buffer);
}

const mapValues = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));

const labels = column(data.labels);
const kind = column(data.kind);
const predictions = mapValues(data.predictions, column);
const right = mapValues(predictions, (each) => each.map((label, k) => label === labels[k]));
const top3 = mapValues(data.top, (each) => mapValues(each, column));

/** The choice for each image at every position of the slider: an index into `answered`. */
function choicesOf({ start, changes }) {
  const choices = [Uint8Array.from(column(start))];
  for (const change of changes) {
    const next = choices[choices.length - 1].slice();
    const choice = column(change.choice);
    column(change.images).forEach((image, k) => (next[image] = choice[k]));
    choices.push(next);
  }
  return choices;
}

const policies = mapValues(data.policies, (each) => ({
  ...each,
  choices: choicesOf(each),
  scores: each.scores.map(column),
}));

const name = (network) => data.names[network];
const colorOf = (network) => {
  const place = data.students.indexOf(network);
  if (place >= 0) return `var(--student-${(place % 4) + 1})`;
  return `var(--${network in policies || network === "teacher" ? network : "mean"})`;
};
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}\u00a0%`;
const whole = new Intl.NumberFormat("en").format;
const costOf = (macs) => percent(macs / data.macs.teacher, macs < 0.1 * data.macs.teacher ? 1 : 0);
const millions = (macs) => `${(macs / 1e6).toFixed(1)} million`;

/** Wilson's 95 % interval of an accuracy, as `wilson_interval` of evaluation/significance.py. */
function intervalOf(accuracy, images) {
  const z2 = 1.959964 ** 2;
  const half = Math.sqrt(z2 * (images * accuracy * (1 - accuracy) + z2 / 4));
  return [-half, half].map((sign) => (images * accuracy + z2 / 2 + sign) / (images + z2));
}

const between = ([low, high]) => `${(100 * low).toFixed(1)} to ${percent(high, 1)}`;

// ------------------------------------------------------------------ the state

const state = {
  policy: data.first,
  positions: mapValues(policies, ({ saved }) => Object.values(saved)[0]),
  filters: { label: "", prediction: "", kind: "", right: "", by: "" },
  shown: 60, // number of pictures
};

// What follows from it.
let within; // the images of the context that is chosen
let curves; // results of each policy on them, at all positions of its slider
let points; // results of each network on them
let choice; // for each image, an index into `answered` of the policy
let given; // for each image, the class that the policy predicts
let shown; // the pictures in the grid

const policy = () => policies[state.policy];
const position = () => state.positions[state.policy];
const choiceFor = (k) => policy().answered[choice[k]];
const current = () => curves[state.policy][position()];

/** The results of a policy on these images. */
function resultAt(policy, position, images) {
  const { answered, counted, macs, choices } = policies[policy];
  const [choice, rights] = [choices[position], answered.map((network) => right[network])];
  const times = answered.map(() => 0);
  let hits = 0;
  for (const k of images) {
    times[choice[k]] += 1;
    hits += rights[choice[k]][k];
  }
  const shares = times.map((each) => each / images.length);
  return {
    policy,
    position,
    network: policy,
    shares,
    share: sum(counted.map((k) => shares[k])),
    macs: sum(shares.map((each, k) => each * macs[k])),
    ...accuracyOf(hits, images.length),
  };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const accuracyOf = (hits, images) => ({
  accuracy: hits / images,
  interval: intervalOf(hits / images, images),
});
const imagesOf = (context) =>
  Uint32Array.from(labels.keys()).filter((k) => context === "" || kind[k] === +context);

function changeContext() {
  within = imagesOf(state.filters.kind);
  curves = {};
  for (const [policy, { steps }] of Object.entries(policies))
    curves[policy] = steps.map((_, position) => resultAt(policy, position, within));
  points = ["teacher", ...data.students, data.mean]
    .filter((network) => network in predictions)
    .map((network) => {
      const hits = sum(within.map((k) => right[network][k]));
      return { network, ...accuracyOf(hits, within.length), macs: data.macs[network] };
    });
  drawChart();
  update();
}

function changePolicy() {
  const { steps, share, meaning, saved } = policy();
  for (const choice of document.getElementsByName("policy"))
    choice.checked = choice.value === state.policy;
  find("slider").max = steps.length - 1;
  find("slider").style.setProperty("--accent", colorOf(state.policy));
  say("share", share);
  say("meaning", meaning);
  find("saved").replaceChildren(
    ...Object.entries(saved).map(([text, at]) =>
      element("button", { type: "button", onclick: () => moveTo(at) }, text),
    ),
  );
  drawShares();
  drawFilters();
  changeContext();
}

function moveTo(position) {
  state.positions[state.policy] = position;
  update();
}

/** Redraw what depends on the position of the slider. */
function update() {
  const { accuracy, interval, macs, share } = current();
  const answers = policy().answered.map((network) => predictions[network]);
  choice = policy().choices[position()];
  given = Uint16Array.from(choice, (each, k) => answers[each][k]);
  find("slider").value = position();
  say("value", `${percent(share, 1)} of images`);
  say("threshold", `threshold ${policy().steps[position()]}`);
  say("of", `top-1 accuracy${contextOf(state.filters.kind)}`);
  say("accuracy", percent(accuracy));
  say("interval", `95 %: ${between(interval)}`);
  say("work", costOf(macs));
  say("macs", `${millions(macs)} MACs`);
  find("slider").ariaValueText = `${percent(share, 1)}, ${toldOf(current())}`;
  moveMarkers();
  updateShares();
  drawMatrix();
  drawGrid();
  keepState();
}

const contextOf = (kind) => (kind === "" ? "" : `, ${data.kinds[kind]}`);
const toldOf = ({ accuracy, interval, macs }) =>
  `accuracy ${percent(accuracy)} (${between(interval)}), ${costOf(macs)} of the teacher's MACs`;

// The address keeps the state, a moment later: browsers refuse too many changes.

let timer;
function keepState() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const filters = Object.entries(state.filters).filter(([, value]) => value !== "");
    const kept = { policy: state.policy, at: position(), ...Object.fromEntries(filters) };
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  }, 200);
}

function readState() {
  const kept = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (kept.policy in policies) state.policy = kept.policy;
  if (policy().steps[Number(kept.at)]) state.positions[state.policy] = Number(kept.at);
  for (const key of Object.keys(state.filters)) state.filters[key] = kept[key] ?? "";
  if (!(Number(state.filters.kind) in data.kinds)) state.filters.kind = "";
  changePolicy();
}

// ------------------------------------------------------------------ elements

const SVG = new Set(["svg", "g", "path", "text"]);

/** Create an element with these attributes and children. */
function element(tag, attributes = {}, ...children) {
  const made = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.entries(value).forEach((pair) => made.style.setProperty(...pair));
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const find = (id) => document.getElementById(id);
const say = (id, text) => (find(id).textContent = text);

// ------------------------------------------------------------------ accuracy and work

const SHAPES = {
  teacher: "M-5-5L5 5M-5 5L5-5",
  [data.mean]: "M-6 0H6M0-6V6",
  selector: "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0Z",
  cascade: "M0-8L8 0L0 8L-8 0Z",
};
let chart; // scales, markers of the policies, and places for the pointer

function drawChart() {
  const { clientWidth: width, clientHeight: height } = find("plot");
  const { teacher } = data.macs;
  const edge = { left: 44, right: width - 14, top: 4, bottom: height - 24 };
  const all = [...points, ...Object.values(curves).flat()];
  const y = scale(all.flatMap(({ interval }) => interval), edge.bottom, edge.top);
  const parts = [teacher, ...all.map(({ macs }) => macs)].map((macs) => Math.log(macs / teacher));
  const log = scale(parts, edge.left, edge.right);
  const x = (macs) => log(Math.log(macs / teacher));
  chart = { x, y, markers: {}, places: [] };

  const now = Object.keys(curves).map((policy) => curves[policy][state.positions[policy]]);
  const svg = element("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": [...points, ...now].map((each) => `${textOf(each)}: ${toldOf(each)}`).join(". "),
  });
  for (const tick of ticks(y.low, y.high, height / 30))
    svg.append(
      element("path", { d: `M${edge.left} ${y(tick)}H${edge.right}`, stroke: "var(--line)" }),
      write(+(100 * tick).toFixed(2), edge.left - 6, y(tick) + 4, "end"),
    );
  for (const tick of logarithmicTicks(log))
    svg.append(
      element("path", { d: `M${x(tick * teacher)} ${edge.bottom}v5`, stroke: "var(--ink)" }),
      write(+(100 * tick).toPrecision(2), x(tick * teacher), edge.bottom + 18, "middle"),
    );
  const axes = `M${edge.left} ${edge.top}V${edge.bottom}H${edge.right}`;
  svg.append(element("path", { d: axes, fill: "none", stroke: "var(--ink)" }));
  for (const [policy, curve] of Object.entries(curves)) {
    const line = curve.map((result) => ({ result, x: x(result.macs), y: y(result.accuracy) }));
    chart.places.push(...line);
    svg.append(
      element("path", {
        d: `M${line.map((place) => `${place.x} ${place.y}`).join("L")}`,
        fill: "none",
        stroke: colorOf(policy),
        "stroke-width": policy === state.policy ? 2.5 : 1.2,
        "stroke-dasharray": policy === "selector" ? "6 4" : "none",
      }),
    );
  }
  for (const result of [...points, ...now]) {
    const marker = markerOf(result.network);
    placeMarker(marker, result);
    svg.append(marker);
    if (result.policy) chart.markers[result.policy] = marker;
    else chart.places.unshift({ result, x: x(result.macs), y: y(result.accuracy) });
  }
  const taken = chart.places.map((place) => boxAt(place.x, place.y));
  for (const result of [...points, ...now]) {
    const text = textOf(result);
    const place = bestPlace(x(result.macs), y(result.accuracy), 7 * text.length, taken, edge);
    taken.push(...Array(20).fill(place)); // a label counts as much as twenty points of a curve
    const weight = result.network === state.policy ? "bold" : "normal";
    const style = { color: colorOf(result.network), "font-weight": weight };
    const label = { x: place.left, y: place.bottom - 3, class: "label", style };
    svg.append(element("text", label, text));
  }
  find("plot").querySelector("svg")?.remove();
  find("plot").prepend(svg);
  find("tip").hidden = true;
}

const textOf = ({ network }) =>
  network in policies || network === "teacher" ? network : name(network);

/** A linear scale from these values to pixels, with a margin; `low` and `high` are its ends. */
function scale(values, from, to) {
  const [least, most] = values.reduce(
    ([low, high], each) => [Math.min(low, each), Math.max(high, each)],
    [Infinity, -Infinity],
  );
  const margin = 0.04 * (most - least) || 0.01;
  const [low, high] = [least - margin, most + margin];
  const unit = (to - from) / (high - low);
  return Object.assign((value) => from + (value - low) * unit, { low, high });
}

function markerOf(network) {
  const line = network === "teacher" || network === data.mean;
  const color = colorOf(network);
  const made = element("g");
  made.append(
    element("path", { stroke: color, "stroke-width": 1.5, "stroke-opacity": 0.55 }),
    element("path", {
      d: SHAPES[network] ?? "M-5-5H5V5H-5Z",
      fill: line ? "none" : color,
      stroke: line ? color : "var(--paper)",
      "stroke-width": line ? 3 : 1,
    }),
  );
  return made;
}

function placeMarker(marker, { macs, accuracy, interval }) {
  const down = chart.y(accuracy);
  const [low, high] = interval.map((end) => chart.y(end) - down);
  marker.setAttribute("transform", `translate(${chart.x(macs)} ${down})`);
  marker.firstChild.setAttribute("d", `M-4 ${low}H4M0 ${low}V${high}M-4 ${high}H4`);
}

function moveMarkers() {
  for (const [policy, marker] of Object.entries(chart.markers))
    placeMarker(marker, curves[policy][state.positions[policy]]);
}

const boxAt = (x, y) => ({ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 });

/** Near a point, find the place for a label that overlaps least with the boxes in `taken`. */
function bestPlace(x, y, length, taken, edge) {
  const places = [6, -9, 22, -25, 38, -41, 54, 70].flatMap((below) =>
    [10, -10 - length, -length / 2].map((right) => ({
      left: x + right,
      right: x + right + length,
      top: y + below - 13,
      bottom: y + below,
    })),
  );
  const inside = places.filter(
    (p) => p.left > edge.left && p.right < edge.right && p.top > edge.top && p.bottom < edge.bottom,
  );
  const shared = (p, t, low, high) =>
    Math.max(0, Math.min(p[high], t[high]) - Math.max(p[low], t[low]));
  const area = (p, t) => shared(p, t, "left", "right") * shared(p, t, "top", "bottom");
  const covered = inside.map((p) => sum(taken.map((t) => area(p, t))));
  return inside[covered.indexOf(Math.min(...covered))] ?? places[0];
}

/** Round numbers between `low` and `high`, about as many as `about`. */
function ticks(low, high, about) {
  const rough = (high - low) / about;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, k) => (first + k) * step);
}

/** Round parts of the teacher's MACs, at least 40 pixels apart; the whole is first. */
function logarithmicTicks(scale) {
  const kept = [];
  for (const ten of [1, 0.1, 0.01, 0.001, 10])
    for (const part of [1, 0.5, 0.2, 0.7, 0.3, 0.4, 0.6, 0.15, 0.8]) {
      const log = Math.log(ten * part);
      const near = (each) => Math.abs(scale(Math.log(each)) - scale(log)) < 40;
      if (log > scale.low && log < scale.high && !kept.some(near)) kept.push(ten * part);
    }
  return kept;
}

const write = (text, x, y, anchor) => element("text", { x, y, "text-anchor": anchor }, text);

/** The network or the position of a slider whose point is nearest to the pointer. */
function nearest(event) {
  const box = find("plot").getBoundingClientRect();
  const away = ({ x, y }) => Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
  const place = chart.places.reduce((best, each) => (away(each) < away(best) ? each : best));
  return away(place) < 30 ? place : undefined;
}

function showTip(event) {
  const place = nearest(event);
  const tip = find("tip");
  tip.hidden = !place;
  find("plot").style.cursor = place?.result.policy ? "pointer" : "";
  if (!place) return;
  const { result, x, y } = place;
  const { share } = policies[result.policy] ?? {};
  tip.replaceChildren(
    element("strong", {}, textOf(result)),
    share ? `: ${share} ${percent(result.share, 1)} of images` : "",
    element("br"),
    `${percent(result.accuracy)} correct (${between(result.interval)})`,
    element("br"),
    `${costOf(result.macs)} of the teacher's MACs (${millions(result.macs)})`,
  );
  const left = Math.min(x + 12, find("plot").clientWidth - tip.offsetWidth);
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${y > tip.offsetHeight + 14 ? y - tip.offsetHeight - 14 : y + 14}px`;
}

function clickChart(event) {
  const { policy, position } = nearest(event)?.result ?? {};
  if (!policy) return;
  state.positions[policy] = position;
  if (policy === state.policy) return update();
  state.policy = policy;
  changePolicy();
}

// ------------------------------------------------------------------ who answers, by context

let shares; // the rows

function drawShares() {
  const { answered } = policy();
  const contexts = data.kinds.length > 1 ? Object.entries(data.kinds) : [];
  const square = (network) => element("i", { style: { background: colorOf(network) } });
  const key = answered.map((network) => element("span", {}, square(network), name(network)));
  find("key").replaceChildren("Who answers:", ...key);
  shares = [["", "all images"], ...contexts].map(([context, title]) => {
    const parts = answered.map(square);
    const accuracy = element("span");
    const row = element(
      contexts.length ? "button" : "div",
      { class: "share", onclick: () => setFilters({ kind: context }) },
      element("span", {}, title),
      element("span", {}, ...parts),
      accuracy,
    );
    return { context, images: imagesOf(context), parts, accuracy, row };
  });
  find("shares").replaceChildren(...shares.map(({ row }) => row));
}

function updateShares() {
  for (const { context, images, parts, accuracy, row } of shares) {
    const result = resultAt(state.policy, position(), images);
    accuracy.textContent = percent(result.accuracy, 1);
    row.ariaPressed = context === state.filters.kind;
    parts.forEach((part, k) => {
      const share = result.shares[k];
      part.style.width = `${100 * share}%`;
      part.textContent = share > 0.15 ? percent(share, 0) : "";
      part.title = `${name(policy().answered[k])}: ${percent(share, 1)}`;
    });
  }
}

// ------------------------------------------------------------------ the confusion matrix

const MOST = 20; // maximum number of classes shown
let cells = []; // buttons, by class and prediction
let kept = []; // the classes shown

function drawMatrix() {
  const classes = data.classes.length;
  const times = new Uint32Array(classes * classes);
  const errors = new Uint32Array(classes);
  for (const k of within) {
    times[labels[k] * classes + given[k]] += 1;
    errors[labels[k]] += labels[k] === given[k] ? 0 : 1;
  }
  const most = Array.from(errors.keys())
    .sort((a, b) => errors[b] - errors[a])
    .slice(0, MOST)
    .sort((a, b) => a - b);
  if (String(most) !== String(kept)) buildMatrix(most);
  const timesOf = ({ row, prediction }) => times[row * classes + prediction];
  const wrong = cells.filter(({ row, prediction }) => row !== prediction);
  const worst = wrong.reduce((largest, cell) => Math.max(largest, timesOf(cell)), 1);
  for (const cell of cells) {
    const { row, prediction, button } = cell;
    const images = timesOf(cell);
    const share = row === prediction ? 0 : (0.85 * images) / worst;
    const pressed =
      state.filters.label === String(row) && state.filters.prediction === String(prediction);
    const now = String([images, share, pressed]);
    if (cell.now === now) continue;
    cell.now = now;
    button.textContent = images || "";
    button.style.setProperty("--share", share);
    button.className = row === prediction ? "right" : share > 0.68 ? "strong" : "";
    button.ariaPressed = pressed;
    const [label, answer] = [data.classes[row], data.classes[prediction]];
    button.ariaLabel = `class ${label}, prediction ${answer}: ${images} images`;
  }
}

function buildMatrix(most) {
  kept = most;
  cells = kept.flatMap((row) =>
    kept.map((prediction) => ({
      row,
      prediction,
      button: element("button", {
        type: "button",
        tabindex: -1,
        "data-row": row,
        "data-prediction": prediction,
      }),
    })),
  );
  cells[0].button.tabIndex = 0;
  const heads = kept.map((k) => element("th", { scope: "col" }, data.classes[k]));
  const rows = kept.map((row, k) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, data.classes[row]),
      ...cells
        .slice(k * kept.length, (k + 1) * kept.length)
        .map(({ button }) => element("td", {}, button)),
    ),
  );
  find("matrix").replaceChildren(
    element("thead", {}, element("tr", {}, element("td"), ...heads)),
    element("tbody", {}, ...rows),
  );
  say(
    "most",
    kept.length < data.classes.length
      ? `Shown are the ${MOST} of ${data.classes.length} classes with the most errors.`
      : "",
  );
}

function clickCell(event) {
  const cell = event.target.closest("button");
  if (!cell) return;
  const { row, prediction } = cell.dataset;
  const pressed = cell.ariaPressed === "true";
  cell.focus();
  setFilters(pressed ? { label: "", prediction: "" } : { label: row, prediction });
}

function moveInMatrix(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const [down, right] = steps[event.key] ?? [];
  const at = cells.findIndex(({ button }) => button === event.target);
  if (down === undefined || at < 0) return;
  event.preventDefault();
  const [row, place] = [Math.floor(at / kept.length) + down, (at % kept.length) + right];
  if (row < 0 || place < 0 || row === kept.length || place === kept.length) return;
  cells[row * kept.length + place].button.focus();
}

/** The Tab key reaches one cell, the arrow keys the others. */
function focusCell(event) {
  for (const { button } of cells) button.tabIndex = button === event.target ? 0 : -1;
}

// ------------------------------------------------------------------ the images

const two = data.students.length === 2;
const RIGHT = {
  all: two ? "both students" : "all students",
  ...Object.fromEntries(data.students.map((student) => [student, `only ${name(student)}`])),
  none: two ? "neither student" : "no student",
  right: "the system",
  wrong: "not the system",
};

function isRight(k, who) {
  const those = data.students.filter((student) => right[student][k]);
  if (who === "right") return given[k] === labels[k];
  if (who === "wrong") return given[k] !== labels[k];
  if (who === "all") return those.length === data.students.length;
  return who === "none" ? !those.length : those.length === 1 && those[0] === who;
}

function matches(k) {
  const { label, prediction, right, by } = state.filters;
  return (
    (label === "" || labels[k] === +label) &&
    (prediction === "" || given[k] === +prediction) &&
    (right === "" || isRight(k, right)) &&
    (by === "" || policy().answered[choice[k]] === by)
  );
}

function drawFilters() {
  const classes = Object.entries(data.classes);
  const filters = {
    label: ["class", classes],
    prediction: ["prediction", classes],
    right: ["correct", Object.entries(RIGHT)],
    by: ["answered by", policy().answered.map((network) => [network, name(network)])],
  };
  const made = Object.entries(filters).map(([key, [title, options]]) => {
    const choice = element(
      "select",
      { id: `filter-${key}`, onchange: (event) => setFilters({ [key]: event.target.value }) },
      element("option", { value: "" }, "any"),
      ...options.map(([value, text]) => element("option", { value }, text)),
    );
    choice.value = state.filters[key];
    if (choice.selectedIndex < 0) choice.value = state.filters[key] = ""; // there is no such one
    return element("label", {}, title, choice);
  });
  const none = mapValues(state.filters, () => "");
  find("filters").replaceChildren(
    ...made,
    element("button", { id: "clear", onclick: () => setFilters(none) }, "all images"),
  );
}

function setFilters(some) {
  const context = some.kind ?? state.filters.kind;
  const changes = context !== state.filters.kind;
  Object.assign(state.filters, some);
  state.shown = 60;
  for (const choice of document.querySelectorAll("#filters select"))
    choice.value = state.filters[choice.id.slice("filter-".length)];
  if (changes) changeContext();
  else update();
}

function drawGrid() {
  const found = within.filter(matches);
  const shareOf = (isRight) => percent(sum(found.map(isRight)) / found.length, 1);
  const others = ["teacher", ...data.students]
    .filter((network) => network in predictions)
    .map((network) => `${name(network)} ${shareOf((k) => right[network][k])}`);
  const wanted = new Set(found);
  shown = [...data.places.keys()].filter((at) => wanted.has(data.places[at]));
  const pictured = shown.length < found.length ? `, ${whole(shown.length)} with pictures` : "";
  const system = `${state.policy} ${shareOf((k) => given[k] === labels[k])}`;
  const correct = found.length ? ` Correct: ${[system, ...others].join(", ")}.` : "";
  say("found", `${whole(found.length)} of ${whole(labels.length)} images${pictured}.${correct}`);
  const tiles = find("grid").children;
  const last = Math.min(shown.length, state.shown);
  for (let place = 0; place < last; place++) {
    const k = data.places[shown[place]];
    const now = String([k, given[k], choiceFor(k)]);
    if (tiles[place]?.dataset.now === now) continue; // most stay as they are when the slider moves
    const made = tile(shown[place]);
    made.dataset.now = now;
    if (tiles[place]) tiles[place].replaceWith(made);
    else find("grid").append(made);
  }
  while (tiles.length > last) tiles[last].remove();
  find("more").hidden = shown.length <= state.shown;
}

function tile(at) {
  const k = data.places[at];
  const [prediction, correct] = [data.classes[given[k]], given[k] === labels[k]];
  const [who, mark] = [choiceFor(k), correct ? "\u2713" : "\u2717"];
  return element(
    "button",
    {
      type: "button",
      "data-at": at,
      "aria-label": `class ${data.classes[labels[k]]}, prediction ${prediction} by ${name(who)}`,
      style: { "--who": colorOf(who) },
      onclick: () => openImage(at),
    },
    element("span", { class: "picture", style: { "background-position": placeOf(at) } }),
    element("span", { class: correct ? "" : "wrong" }, `${mark} ${prediction}`),
    element("span", { class: "who" }, name(who)),
  );
}

/** The place of a picture in the sheet. */
function placeOf(at) {
  const { across, places } = data;
  const part = (step, steps) => `${(100 * step) / Math.max(1, steps - 1)}%`;
  const rows = Math.ceil(places.length / across);
  return `${part(at % across, across)} ${part(Math.floor(at / across), rows)}`;
}

let opened; // the picture in the dialog

function openImage(at) {
  if (at === undefined) return;
  opened = at;
  const k = data.places[at];
  const [who, label, prediction] = [choiceFor(k), labels[k], given[k]];
  const networks = new Set([...data.students, ...policy().answered, "teacher"]);
  say("image-title", data.classes[label] + contextOf(data.kinds.length > 1 ? kind[k] : ""));
  find("large").style.backgroundPosition = placeOf(at);
  find("route").replaceChildren(
    `${routeOf(k)}: ${name(who)} answers `,
    element("strong", {}, data.classes[prediction]),
    prediction === label ? ", which is right." : ", which is wrong.",
  );
  find("bars").replaceChildren(
    ...[...networks]
      .filter((network) => network in top3)
      .flatMap((network) => [
        element(
          "h3",
          { style: { color: colorOf(network) } },
          name(network) + (network === who ? " \u2190 answers" : ""),
        ),
        ...bars(network, at, label),
      ]),
  );
  if (!find("image").open) find("image").showModal();
}

const openNext = (step) => openImage(shown[shown.indexOf(opened) + step]);

/** What the choice for image k depends on. */
function routeOf(k) {
  const { answered, scores, steps } = policy();
  const thresholds = steps[position()].split(", ");
  if (state.policy === "selector") {
    const told = answered.map((network, at) => `${name(network)} ${scores[at][k].toFixed(3)}`);
    return `The selector's probabilities are ${told.join(", ")}; threshold ${steps[position()]}`;
  }
  const last = answered.indexOf(choiceFor(k));
  const told = scores.slice(0, last + 1).map((score, step) => {
    const side = step < last ? "below" : "at least";
    const sure = `${name(answered[step])} is ${+score[k].toFixed(6)}`;
    return `${sure}, ${side} the threshold of ${thresholds[step]}`;
  });
  return `The confidence of ${told.join("; that of ")}`;
}

function bars(network, at, label) {
  const { labels: best, probabilities } = top3[network];
  const each = best.length / data.places.length;
  return Array.from({ length: each }, (_, rank) => {
    const [prediction, probability] = [best[at * each + rank], probabilities[at * each + rank]];
    return element(
      "div",
      { class: prediction === label ? "bar label-of" : "bar" },
      element("span", {}, data.classes[prediction]),
      element("i", { style: { width: `${100 * probability}%` } }),
      element("b", {}, percent(probability, 1)),
    );
  });
}

// ------------------------------------------------------------------ events

for (const choice of document.getElementsByName("policy"))
  choice.addEventListener("change", () => {
    state.policy = choice.value;
    changePolicy();
  });
find("slider").addEventListener("input", (event) => moveTo(Number(event.target.value)));
find("plot").addEventListener("pointermove", showTip);
find("plot").addEventListener("pointerleave", () => (find("tip").hidden = true));
find("plot").addEventListener("click", clickChart);
find("matrix").addEventListener("click", clickCell);
find("matrix").addEventListener("keydown", moveInMatrix);
find("matrix").addEventListener("focusin", focusCell);
find("more").addEventListener("click", () => {
  state.shown += 120;
  drawGrid();
});
find("before").addEventListener("click", () => openNext(-1));
find("after").addEventListener("click", () => openNext(1));
find("image").addEventListener("keydown", ({ key }) =>
  openNext({ ArrowLeft: -1, ArrowRight: 1 }[key]),
);
find("image").addEventListener("close", () =>
  find("grid").querySelector(`[data-at="${opened}"]`)?.focus(),
);
window.addEventListener("hashchange", readState);
find("app").hidden = false;
readState();
new ResizeObserver(drawChart).observe(find("plot"));
