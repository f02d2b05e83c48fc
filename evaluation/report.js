"use strict";

// ------------------------------------------------------------------ the data

const ESCAPES = { "&": "&amp;", "<": "&lt;", '"': "&quot;" };
const escaped = (text) => text.replace(/[&<"]/g, (character) => ESCAPES[character]);

// All text is made ready for HTML here: a class may be named "<b>".
const data = JSON.parse(document.getElementById("data").textContent, (key, value) =>
  typeof value === "string" ? escaped(value) : value,
);

/** Decode numbers that report.py wrote as base64. */
function column({ type, bytes }) {
  const raw = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  return new globalThis[type](raw.buffer);
}

const mapValues = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));

const labels = column(data.labels);
const kind = column(data.kind);
const networks = mapValues(data.networks, (each) => {
  const predictions = column(each.predictions);
  const right = predictions.map((label, k) => label === labels[k]);
  return { ...each, predictions, right, best: mapValues(each.best, column) };
});

/** Who answers each image, an index into `answered`, at every position of the slider. */
function choicesOf(scores, thresholds) {
  return Array.from(thresholds[0], (_, position) => {
    const choices = new Uint16Array(labels.length);
    scores.forEach((score, step) => {
      const threshold = thresholds[step][position];
      for (let k = 0; k < choices.length; k++)
        if (choices[k] === step && score[k] < threshold) choices[k] += 1;
    });
    return choices;
  });
}

const policies = mapValues(data.policies, (each) => {
  const [scores, thresholds] = [each.scores.map(column), each.thresholds.map(column)];
  return { ...each, scores, thresholds, choices: choicesOf(scores, thresholds) };
});

const name = (system) => networks[system]?.title ?? system; // of a network or a policy
const lookOf = (system) => networks[system]?.look ?? system;
const colorOf = (system) => `var(--${lookOf(system)})`;
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}\u00a0%`;
const whole = new Intl.NumberFormat("en").format;
const rounded = (value) => Number(value.toPrecision(6));
const costOf = (macs) => percent(macs / data.teacher, macs < 0.1 * data.teacher ? 1 : 0);
const millions = (macs) => `${(macs / 1e6).toFixed(1)} million`;
const between = ([low, high]) => `${(100 * low).toFixed(1)} to ${percent(high, 1)}`;
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** An accuracy with Wilson's 95 % interval, as `wilson_interval` of evaluation/significance.py. */
function accuracyOf(hits, images) {
  const accuracy = hits / images;
  const z2 = 1.959964 ** 2;
  const half = Math.sqrt(z2 * (hits * (1 - accuracy) + z2 / 4));
  const interval = [-half, half].map((side) => (hits + z2 / 2 + side) / (images + z2));
  return { accuracy, interval };
}

/** The results of a policy on these images. */
function resultAt(system, position, images) {
  const { answered, macs, choices } = policies[system];
  const [choice, rights] = [choices[position], answered.map((network) => networks[network].right)];
  const times = answered.map(() => 0);
  let hits = 0;
  for (const k of images) {
    times[choice[k]] += 1;
    hits += rights[choice[k]][k];
  }
  const shares = times.map((each) => each / images.length);
  return {
    system,
    position,
    shares,
    share: system === "selector" ? shares[0] : 1 - shares[0],
    macs: sum(shares.map((each, k) => each * macs[k])),
    ...accuracyOf(hits, images.length),
  };
}

const results = {}; // by context

/** Results on the images of a context: of the networks, and of each policy at all positions. */
function resultsOf(context) {
  if (results[context]) return results[context];
  const images = Array.from(labels.keys()).filter((k) => context === "" || kind[k] === +context);
  const points = Object.entries(networks).map(([system, { macs, right }]) => {
    const hits = sum(images.map((k) => right[k]));
    return { system, macs, ...accuracyOf(hits, images.length) };
  });
  const curves = {};
  for (const [policy, { choices }] of Object.entries(policies))
    curves[policy] = choices.map((_, position) => resultAt(policy, position, images));
  return (results[context] = { images, points, curves });
}

// ------------------------------------------------------------------ the state

const NO_FILTERS = { kind: "", label: "", prediction: "", right: "", by: "" };
const state = {
  policy: data.first,
  ...mapValues(policies, ({ saved }) => Object.values(saved)[0]), // the positions of the sliders
  ...NO_FILTERS,
  pictures: 60, // at most, in the grid
};

// What follows from it.
let choice; // for each image, an index into `answered` of the policy
let given; // for each image, the class that the policy predicts
let shown; // the pictures that match the filters

const choiceFor = (k) => policies[state.policy].answered[choice[k]];
const resultIn = (context) => resultsOf(context).curves[state.policy][state[state.policy]];

/** Change the state, and with it the page. */
function change(some) {
  Object.assign(state, some);
  draw();
}

function draw() {
  const { answered, choices } = policies[state.policy];
  const answers = answered.map((network) => networks[network].predictions);
  choice = choices[state[state.policy]];
  given = choice.map((each, k) => answers[each][k]);
  drawChart(); // first: it asks for the width of the plot, which takes long after other changes
  drawSlider();
  drawShares();
  drawMatrix();
  drawFilters();
  drawGrid();
  keepState();
}

// The address keeps the state, a moment later: browsers refuse too many changes.

let timer;
function keepState() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const kept = Object.entries(state).filter(([, value]) => value !== "");
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  }, 200);
}

function readState() {
  const kept = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const key of ["label", "prediction", "right", "by"]) state[key] = kept[key] ?? "";
  state.kind = data.kinds[Number(kept.kind)] ? kept.kind : "";
  state.pictures = Number(kept.pictures) || 60;
  if (kept.policy in policies) state.policy = kept.policy;
  for (const [policy, { choices }] of Object.entries(policies))
    if (choices[Number(kept[policy])]) state[policy] = Number(kept[policy]);
  draw();
}

// ------------------------------------------------------------------ elements

const find = (id) => document.getElementById(id);

/** Show HTML in an element: a text, or a list with one node each, of which few change. */
function show(id, html) {
  const [node, parts] = [find(id), [html].flat()];
  const children = parts.flatMap((part, place) => {
    if (parts.length > 1 && part === node.parts?.[place]) return node.childNodes[place];
    const made = document.createElement("template");
    made.innerHTML = node.matches("svg") ? `<svg>${part}</svg>` : part;
    return [...(made.content.querySelector("svg") ?? made.content).childNodes];
  });
  patch(node, children);
  node.parts = parts;
}

/** Give a node these children. Those that are there already stay, and with them the focus. */
function patch(node, children) {
  const kindOf = (each) => String([each.nodeName, each.data ?? each.getAttributeNames()]);
  children.forEach((child, place) => {
    const old = node.childNodes[place];
    if (!old) node.append(child);
    else if (old === child || old.isEqualNode(child)) return;
    else if (kindOf(old) !== kindOf(child)) old.replaceWith(child);
    else {
      for (const { name, value } of child.attributes) old.setAttribute(name, value);
      patch(old, [...child.childNodes]);
    }
  });
  while (node.childNodes.length > children.length) node.lastChild.remove();
}

/** The attribute of a button that changes the state. */
const changes = (some) => `data-change="${escaped(JSON.stringify(some))}"`;

// ------------------------------------------------------------------ the policy and its slider

const contextOf = (context) => (context === "" ? "" : `, ${data.kinds[context]}`);
const toldOf = ({ accuracy, interval, macs }) =>
  `accuracy ${percent(accuracy)} (${between(interval)}), ${costOf(macs)} of the teacher's MACs`;

function drawSlider() {
  const { share, meaning, saved, thresholds, choices } = policies[state.policy];
  const [position, result] = [state[state.policy], resultIn(state.kind)];
  document.querySelector(`[name=policy][value=${state.policy}]`).checked = true;
  const slider = find("slider");
  slider.max = choices.length - 1;
  slider.value = position;
  slider.ariaValueText = `${percent(result.share, 1)}, ${toldOf(result)}`;
  slider.style.accentColor = colorOf(state.policy);
  const thresholdAt = (at) => thresholds.map((each) => rounded(each[at])).join(", ");
  const savedButton = ([text, at]) =>
    `<button ${changes({ [state.policy]: at })}>${text} ${thresholdAt(at)}</button>`;
  show("share", share);
  show("value", `${percent(result.share, 1)} of images`);
  show("threshold", `threshold ${thresholdAt(position)}`);
  show("saved", Object.entries(saved).map(savedButton));
  show("of", `top-1 accuracy${contextOf(state.kind)}`);
  show("accuracy", percent(result.accuracy));
  show("interval", `95 %: ${between(result.interval)}`);
  show("work", costOf(result.macs));
  show("macs", `${millions(result.macs)} MACs`);
  show("meaning", meaning);
}

/** Draw who answers, by context. */
function drawShares() {
  const { answered } = policies[state.policy];
  const contexts = data.kinds.length > 1 ? Object.entries(data.kinds) : [];
  const tag = contexts.length ? "button" : "div";
  const key = answered.map(
    (network) => `<span><i style="background: ${colorOf(network)}"></i>${name(network)}</span>`,
  );
  show("key", ["Who answers: ", ...key]);
  const row = ([context, title]) => {
    const { shares, accuracy } = resultIn(context);
    const parts = shares.map(
      (share, k) =>
        `<i style="background: ${colorOf(answered[k])}; width: ${100 * share}%"
          title="${name(answered[k])}: ${percent(share, 1)}"
        >${share > 0.15 ? percent(share, 0) : ""}</i>`,
    );
    return `<${tag} class="share" aria-pressed="${context === state.kind}"
        ${changes({ kind: context })}>
      <span>${title}</span><span>${parts.join("")}</span><span>${percent(accuracy, 1)}</span>
    </${tag}>`;
  };
  show("shares", [["", "all images"], ...contexts].map(row));
}

// ------------------------------------------------------------------ accuracy and work

const MARKERS = {
  teacher: "M-5-5L5 5M-5 5L5-5",
  mean: "M-6 0H6M0-6V6",
  selector: "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0Z",
  cascade: "M0-7L7 0L0 7L-7 0Z",
};
let places; // of all results, for the pointer

function drawChart() {
  const { clientWidth: width, clientHeight: height } = find("plot");
  const [left, right, top, bottom] = [44, width - 14, 4, height - 24];
  const { points, curves } = resultsOf(state.kind);
  const all = [...points, ...Object.values(curves).flat()];
  const intervals = all.flatMap(({ interval }) => interval);
  const y = scale(intervals, bottom, top);
  const log = scale([data.teacher, ...all.map(({ macs }) => macs)].map(Math.log), left, right);
  const x = (macs) => log(Math.log(macs));
  places = all.map((result) => ({ result, x: x(result.macs), y: y(result.accuracy) }));
  const marked = places.filter(
    ({ result: { system, position } }) => position === undefined || position === state[system],
  );

  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((each) => y(0) - y(each / 100) > 28);
  const steps = Array.from({ length: 100 / step + 1 }, (_, k) => rounded(k * step));
  const lines = steps
    .map((tick) => [tick, y(tick / 100)])
    .filter(([, at]) => at > top && at < bottom)
    .map(
      ([tick, at]) =>
        `<g><path class="line" d="M${left} ${at}H${right}"/>
        <text x="${left - 6}" y="${at + 4}" text-anchor="end">${tick}</text></g>`,
    );
  const ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]
    .map((tick) => [tick, x((data.teacher * tick) / 100)])
    .filter(([, at]) => at > left && at < right)
    .map(
      ([tick, at]) =>
        `<g><path d="M${at} ${bottom}v5"/>
        <text x="${at}" y="${bottom + 18}" text-anchor="middle">${tick}</text></g>`,
    );
  const lineOf = (policy) => {
    const line = places.filter(({ result }) => result.system === policy);
    return `<path class="${policy}" style="color: ${colorOf(policy)}"
      stroke-width="${policy === state.policy ? 2.5 : 1.2}"
      d="M${line.map((place) => `${place.x} ${place.y}`).join("L")}"/>`;
  };
  const markerOf = ({ result: { system, interval }, ...place }) => {
    const [low, high] = interval.map((end) => y(end) - place.y);
    return `<g transform="translate(${place.x} ${place.y})" style="color: ${colorOf(system)}">
      <path class="interval" d="M-4 ${low}H4M0 ${low}V${high}M-4 ${high}H4"/>
      <path class="marker" d="${MARKERS[lookOf(system)] ?? "M-5-5H5V5H-5Z"}"/>
    </g>`;
  };
  const taken = places.map((place) => ({ ...place, width: 14 }));
  const labelOf = ({ result: { system }, ...place }) => {
    const box = boxNear(place, 7.6 * name(system).length, taken, [left, right, top, bottom]);
    taken.push(box);
    return `<text class="label" x="${box.x}" y="${box.y + 4}" text-anchor="middle"
      style="color: ${colorOf(system)}; font-weight: ${system === state.policy ? "bold" : "normal"}"
    >${name(system)}</text>`;
  };
  const told = marked.map(({ result }) => `${name(result.system)}: ${toldOf(result)}`);
  find("drawing").setAttribute("aria-label", told.join(". "));
  const frame = `<path d="M${left} ${top}V${bottom}H${right}"/>`;
  const behind = [...lines, ...ticks, frame, ...Object.keys(curves).map(lineOf)];
  show("drawing", [...behind, ...marked.map(markerOf), ...marked.map(labelOf)]);
}

/** A linear scale from these values to tenths of pixels, with a margin. */
function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.04 * (high - low) || 0.01;
  const unit = (to - from) / (high - low + 2 * margin);
  return (value) => Math.round(10 * (from + (value - low + margin) * unit)) / 10;
}

/** The place for a label of this width near a point: the first one that is free of `taken`. */
function boxNear({ x, y }, width, taken, [left, right, top, bottom]) {
  const away = width / 2 + 10;
  const boxes = Array.from({ length: 48 }, (_, k) => y + (-1) ** k * 6 * k)
    .filter((at) => at > top + 7 && at < bottom - 7)
    .flatMap((at) =>
      [x + away, x - away, x].map((middle) => ({
        x: Math.max(left + width / 2, Math.min(middle, right - width / 2)),
        y: at,
        width,
      })),
    );
  const meet = (a, b) => 2 * Math.abs(a.x - b.x) < a.width + b.width && Math.abs(a.y - b.y) < 16;
  return boxes.find((box) => !taken.some((each) => meet(box, each))) ?? boxes[0];
}

/** The result whose point is nearest to the pointer. */
function nearest(event) {
  const box = find("plot").getBoundingClientRect();
  const away = ({ x, y }) => Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
  const place = places.reduce((best, each) => (away(each) < away(best) ? each : best));
  return away(place) < 30 ? place : undefined;
}

function showTip(event) {
  const [plot, tip, place] = [find("plot"), find("tip"), nearest(event)];
  tip.hidden = !place;
  if (!place) return;
  const { system, share, accuracy, interval, macs } = place.result;
  const of = system in policies ? `: ${policies[system].share} ${percent(share, 1)} of images` : "";
  show(
    "tip",
    `<strong>${name(system)}</strong>${of}
    <br>${percent(accuracy)} correct (${between(interval)})
    <br>${costOf(macs)} of the teacher's MACs (${millions(macs)})`,
  );
  const beside = `${(-100 * place.x) / plot.clientWidth}%`; // at the right edge, it is to the left
  const below = place.y < plot.clientHeight / 2 ? "1rem" : "calc(-100% - 1rem)";
  tip.style.translate = `calc(${place.x}px + ${beside}) calc(${place.y}px + ${below})`;
}

function clickChart(event) {
  const { system, position } = nearest(event)?.result ?? {};
  if (system in policies) change({ policy: system, [system]: position });
}

// ------------------------------------------------------------------ the confusion matrix

const MOST = 20; // maximum number of classes shown: those with the most errors of all networks
const errors = data.classes.map(() => 0);
for (const { right } of Object.values(networks))
  right.forEach((hit, k) => (errors[labels[k]] += 1 - hit));
const rows = [...errors.keys()]
  .sort((a, b) => errors[b] - errors[a])
  .slice(0, MOST)
  .sort((a, b) => a - b);

let reached = `${rows[0]} ${rows[0]}`; // the Tab key reaches this cell, the arrow keys the others

function drawMatrix() {
  const { classes } = data;
  const times = new Uint32Array(classes.length ** 2);
  for (const k of resultsOf(state.kind).images) times[labels[k] * classes.length + given[k]] += 1;
  const timesOf = (label, prediction) => times[label * classes.length + prediction];
  const errorsOf = (label) => rows.map((other) => (label === other ? 1 : timesOf(label, other)));
  const worst = Math.max(...rows.flatMap(errorsOf));
  const cell = (label, prediction) => {
    const [images, at] = [timesOf(label, prediction), `${label} ${prediction}`];
    const share = label === prediction ? 0 : (0.85 * images) / worst;
    const pressed = `${state.label} ${state.prediction}` === at;
    const filters = pressed ? { label: "", prediction: "" } : { label, prediction };
    return `<td><button aria-pressed="${pressed}" style="--share: ${share}"
      class="${label === prediction ? "right" : share > 0.68 ? "strong" : ""}"
      aria-label="class ${classes[label]}, prediction ${classes[prediction]}: ${images} images"
      data-at="${at}" tabindex="${at === reached ? 0 : -1}"
      ${changes(filters)}>${images || ""}</button></td>`;
  };
  const heads = rows.map((prediction) => `<th scope="col">${classes[prediction]}</th>`);
  const rowOf = (label) => {
    const cells = rows.map((prediction) => cell(label, prediction));
    return `<tr><th scope="row">${classes[label]}</th>${cells.join("")}</tr>`;
  };
  show("matrix", [`<thead><tr><td></td>${heads.join("")}</tr></thead>`, ...rows.map(rowOf)]);
  if (rows.length < classes.length)
    show("most", `Shown are the ${MOST} of ${classes.length} classes with the most errors.`);
}

function moveInMatrix(event) {
  const down = rows.length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -down, ArrowDown: down };
  const cells = [...find("matrix").querySelectorAll("button")];
  const next = cells[cells.indexOf(event.target) + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

// ------------------------------------------------------------------ the images

/** The students that are correct on each image, as a value of the filter. */
const rightStudents = Array.from(
  labels,
  (_, k) => data.students.filter((student) => networks[student].right[k]).join() || "none",
);

const RIGHT = [
  [data.students.join(), "all students"],
  ...data.students.map((student) => [student, `only ${name(student)}`]),
  ["none", "no student"],
  ["right", "the system"],
  ["wrong", "not the system"],
];

function matches(k) {
  const { label, prediction, right, by } = state;
  const system = given[k] === labels[k] ? "right" : "wrong";
  return (
    (state.kind === "" || kind[k] === +state.kind) &&
    (label === "" || labels[k] === +label) &&
    (prediction === "" || given[k] === +prediction) &&
    (right === "" || right === rightStudents[k] || right === system) &&
    (by === "" || choiceFor(k) === by)
  );
}

function drawFilters() {
  const classes = Object.entries(data.classes);
  const { answered } = policies[state.policy];
  const filters = {
    label: ["class", classes],
    prediction: ["prediction", classes],
    right: ["correct", RIGHT],
    by: ["answered by", answered.map((network) => [network, name(network)])],
  };
  const filter = ([key, [title, options]]) => {
    const made = options.map(([value, text]) => `<option value="${value}">${text}</option>`);
    return `<label>${title}
      <select name="${key}"><option value="">any</option>${made.join("")}</select></label>`;
  };
  const clear = `<button id="clear" ${changes(NO_FILTERS)}>all images</button>`;
  show("filters", [...Object.entries(filters).map(filter), clear]);
  for (const select of find("filters").querySelectorAll("select")) {
    select.value = state[select.name];
    if (select.selectedIndex < 0) select.value = state[select.name] = ""; // there is no such one
  }
}

function drawGrid() {
  const found = resultsOf("").images.filter(matches);
  const shareOf = (isRight) => percent(sum(found.map(isRight)) / found.length, 1);
  const others = Object.values(networks).map(
    ({ title, right }) => `${title} ${shareOf((k) => right[k])}`,
  );
  shown = [...data.places.keys()].filter((at) => matches(data.places[at]));
  const pictured = shown.length < found.length ? `, ${whole(shown.length)} with pictures` : "";
  const system = `${state.policy} ${shareOf((k) => given[k] === labels[k])}`;
  const correct = found.length ? ` Correct: ${[system, ...others].join(", ")}.` : "";
  show("found", `${whole(found.length)} of ${whole(labels.length)} images${pictured}.${correct}`);
  show("grid", shown.slice(0, state.pictures).map(tile));
  find("more").hidden = shown.length <= state.pictures;
}

function tile(at) {
  const k = data.places[at];
  const [prediction, correct] = [data.classes[given[k]], given[k] === labels[k]];
  const who = choiceFor(k);
  return `<button data-picture="${at}" style="--who: ${colorOf(who)}"
      aria-label="class ${data.classes[labels[k]]}, prediction ${prediction} by ${name(who)}">
    <span class="picture" style="${placeOf(at)}"></span>
    <span class="${correct ? "" : "wrong"}">${correct ? "\u2713" : "\u2717"} ${prediction}</span>
    <span class="who">${name(who)}</span>
  </button>`;
}

/** The place of a picture in the sheet. */
const placeOf = (at) => `--column: ${at % data.across}; --row: ${Math.floor(at / data.across)}`;

let opened; // the picture in the dialog

function openImage(at) {
  if (at === undefined) return;
  opened = at;
  const k = data.places[at];
  const [who, label, prediction] = [choiceFor(k), labels[k], given[k]];
  show("image-title", data.classes[label] + contextOf(data.kinds.length > 1 ? kind[k] : ""));
  find("large").style = placeOf(at);
  show(
    "route",
    `${routeOf(k)}: ${name(who)} answers <strong>${data.classes[prediction]}</strong>,
    which is ${prediction === label ? "right" : "wrong"}.`,
  );
  const bars = Object.keys(networks).map((network) => {
    const answers = network === who ? " \u2190 answers" : "";
    return `<h3 style="color: ${colorOf(network)}">${name(network)}${answers}</h3>
      ${barsOf(network, at, label).join("")}`;
  });
  show("bars", bars.join(""));
  if (!find("image").open) find("image").showModal();
}

const openNext = (step) => openImage(shown[shown.indexOf(opened) + step]);

/** What the choice for image k depends on. */
function routeOf(k) {
  const { answered, scored, scores, thresholds } = policies[state.policy];
  const told = scores.slice(0, choice[k] + 1).map((score, step) => {
    const side = step < choice[k] ? "below" : "at least";
    const threshold = thresholds[step][state[state.policy]];
    return `${scored} ${name(answered[step])} is ${rounded(score[k])},
      ${side} the threshold of ${rounded(threshold)}`;
  });
  return `The ${told.join("; the ")}`;
}

function barsOf(network, at, label) {
  const { labels: best, probabilities } = networks[network].best;
  const each = best.length / data.places.length;
  return Array.from({ length: each }, (_, rank) => {
    const [prediction, share] = [best[at * each + rank], probabilities[at * each + rank]];
    return `<div class="bar ${prediction === label ? "label-of" : ""}">
      <span>${data.classes[prediction]}</span>
      <i style="width: ${100 * share}%"></i>
      <b>${percent(share, 1)}</b>
    </div>`;
  });
}

// ------------------------------------------------------------------ events

document.addEventListener("click", ({ target }) => {
  const { change: some, picture } = target.closest("button")?.dataset ?? {};
  if (some) change(JSON.parse(some));
  if (picture) openImage(Number(picture));
});
find("policy").addEventListener("change", ({ target }) => change({ policy: target.value }));
find("slider").addEventListener("input", ({ target }) =>
  change({ [state.policy]: Number(target.value) }),
);
find("filters").addEventListener("change", ({ target }) => change({ [target.name]: target.value }));
find("plot").addEventListener("pointermove", showTip);
find("plot").addEventListener("pointerleave", () => (find("tip").hidden = true));
find("plot").addEventListener("click", clickChart);
find("matrix").addEventListener("keydown", moveInMatrix);
find("matrix").addEventListener("focusin", ({ target }) => {
  reached = target.dataset.at;
  drawMatrix();
});
find("more").addEventListener("click", () => change({ pictures: state.pictures + 120 }));
find("before").addEventListener("click", () => openNext(-1));
find("after").addEventListener("click", () => openNext(1));
find("image").addEventListener("keydown", ({ key }) =>
  openNext({ ArrowLeft: -1, ArrowRight: 1 }[key]),
);
find("image").addEventListener("close", () =>
  find("grid").querySelector(`[data-picture="${opened}"]`)?.focus(),
);
window.addEventListener("hashchange", readState);
find("app").hidden = false;
readState();
new ResizeObserver(drawChart).observe(find("plot"));
