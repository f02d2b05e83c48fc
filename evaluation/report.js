"use strict";

// ------------------------------------------------------------------ the data

const data = JSON.parse(document.getElementById("data").textContent);
const name = (network) => data.names[network];
const placeOf = (network) => data.students.indexOf(network) % 4; // -1: not a student
const colorOf = (network) =>
  placeOf(network) >= 0
    ? `var(--student-${placeOf(network) + 1})`
    : `var(--${network === data.mean ? "ensemble" : network})`;

/** Decode numbers that report.py wrote as base64. */
function column({ type, bytes }) {
  const raw = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  return new globalThis[type](raw.buffer);
}

const labels = column(data.labels);
const kind = column(data.kind);
const predictions = Object.fromEntries(
  Object.entries(data.predictions).map(([network, each]) => [network, column(each)]),
);
const top3 = Object.fromEntries(
  Object.entries(data.pictures.top).map(([network, each]) => [
    network,
    { labels: column(each.labels), probabilities: column(each.probabilities) },
  ]),
);
const count = labels.length;

/** The choice of each image at every position of the slider: an index into `answered`. */
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

const policies = Object.fromEntries(
  Object.entries(data.policies).map(([policy, each]) => [
    policy,
    { ...each, choices: choicesOf(each), scores: each.scores.map(column) },
  ]),
);

/** The result of a policy at a position of its slider: `choice` and `answer` for each image,
 * accuracy, MACs per image, and the share of the images whose choice is in `counted`. */
function route(policy, position) {
  const { answered, counted, macs, choices } = policies[policy];
  const choice = choices[position];
  const given = answered.map((network) => predictions[network]);
  const answer = new Uint16Array(count);
  const times = answered.map(() => 0);
  let right = 0;
  for (let k = 0; k < count; k++) {
    answer[k] = given[choice[k]][k];
    right += answer[k] === labels[k] ? 1 : 0;
    times[choice[k]] += 1;
  }
  const work = times.reduce((sum, each, k) => sum + each * macs[k], 0);
  const share = counted.reduce((sum, k) => sum + times[k], 0) / count;
  return { choice, answer, accuracy: right / count, share, macs: work / count };
}

function accuracyOf(network, where = () => true) {
  let right = 0;
  let all = 0;
  for (let k = 0; k < count; k++) {
    if (where(k)) {
      all += 1;
      right += predictions[network][k] === labels[k] ? 1 : 0;
    }
  }
  return right / all;
}

const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)} %`;
const whole = (number) => number.toLocaleString("en");
const millions = (macs) => (macs / 1e6).toFixed(1);

// ------------------------------------------------------------------ the state

const state = {
  policy: "selector",
  positions: Object.fromEntries(Object.keys(policies).map((each) => [each, policies[each].saved])),
  filters: { label: "", answer: "", kind: "", right: "", by: "" },
  shown: 60, // number of pictures
};
let routed; // result of the current policy at its position
const thresholdsAt = (policy, position) =>
  policies[policy].positions[position].map((each) => each.toFixed(2)).join(", ");

/** Create an element with these attributes and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.entries(value).forEach((pair) => made.style.setProperty(...pair));
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}
const find = (id) => document.getElementById(id);
const say = (id, text) => {
  find(id).textContent = text;
};

/** Redraw everything that depends on the policy and its threshold. */
function update() {
  const position = state.positions[state.policy];
  const threshold = thresholdsAt(state.policy, position);
  routed = route(state.policy, position);
  find("threshold").value = position;
  say("value", threshold);
  say("accuracy", percent(routed.accuracy));
  const { teacher } = data.macs;
  say("macs", millions(routed.macs));
  say("of-teacher", teacher ? `${percent(routed.macs / teacher, 0)} of the teacher's` : "");
  say("share", percent(routed.share, 1));
  find("threshold").setAttribute(
    "aria-valuetext",
    `${threshold}: accuracy ${percent(routed.accuracy)}, ` +
      `${millions(routed.macs)} million MACs per image`,
  );
  drawPlot();
  drawMatrix();
  drawGrid();
}

/** Redraw everything after a change of the policy. */
function changePolicy() {
  const { saved, share, meaning, positions } = policies[state.policy];
  find("threshold").max = positions.length - 1;
  say("saved", `reset to ${thresholdsAt(state.policy, saved)} (chosen on validation images)`);
  say("share-name", share);
  say("meaning", meaning);
  state.filters.by = "";
  drawFilters();
  update();
}

// ------------------------------------------------------------------ accuracy and cost

const curves = Object.fromEntries(
  Object.entries(policies).map(([policy, { positions }]) => [
    policy,
    positions.map((_, position) => route(policy, position)),
  ]),
);
const points = ["teacher", ...data.students, data.mean]
  .filter((network) => network in predictions)
  .map((network) => ({
    network,
    text: network === data.mean ? `mean of ${data.mean}` : name(network),
    accuracy: accuracyOf(network),
    macs: data.macs[network],
  }));
const STUDENT_SHAPES = [
  "M-5-5H5V5H-5Z",
  "M0-6L6 5H-6Z",
  "M0 6L6-5H-6Z",
  "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
];
const SHAPES = {
  teacher: "M-5-5L5 5M-5 5L5-5",
  [data.mean]: "M-6 0H6M0-6V6",
  selector: "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0Z",
  cascade: "M0-8L8 0L0 8L-8 0Z",
};

function drawPlot() {
  const width = Math.max(280, find("plot").clientWidth);
  const height = Math.min(380, Math.max(260, 0.55 * width));
  const edge = { left: 58, right: 14, top: 14, bottom: 40 };
  const all = [...points, ...curves.selector, ...curves.cascade];
  const range = (key) => [
    Math.min(...all.map((each) => each[key])),
    Math.max(...all.map((each) => each[key])),
  ];
  const [low, high] = range("accuracy");
  const [cheap, dear] = range("macs");
  const pad = 0.12 * (high - low) || 0.01;
  const x = (macs) =>
    edge.left + 10 + ((macs - cheap) / (dear - cheap || 1)) * (width - edge.left - edge.right - 20);
  const y = (accuracy) =>
    edge.top +
    ((high + pad - accuracy) / (high - low + 2 * pad)) * (height - edge.top - edge.bottom);

  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "img",
    "aria-label":
      `Accuracy against million MACs per image. ${state.policy} at ` +
      `${thresholdsAt(state.policy, state.positions[state.policy])}: ` +
      `${percent(routed.accuracy)}, ${millions(routed.macs)} million. ` +
      points
        .map((p) => `${p.text}: ${percent(p.accuracy)}, ${millions(p.macs)} million`)
        .join(". "),
  });
  for (const tick of ticks(low - pad, high + pad, 8)) {
    svg.append(
      draw("path", {
        d: `M${edge.left} ${y(tick)}H${width - edge.right}`,
        stroke: "var(--line)",
        "stroke-width": 0.5,
      }),
      write(`${+(100 * tick).toFixed(2)} %`, edge.left - 6, y(tick) + 4, "end"),
    );
  }
  for (const tick of ticks(cheap, dear, width > 500 ? 8 : 5)) {
    svg.append(
      draw("path", { d: `M${x(tick)} ${height - edge.bottom}v5`, stroke: "var(--ink)" }),
      write(tick / 1e6, x(tick), height - edge.bottom + 18, "middle"),
    );
  }
  svg.append(
    draw("path", {
      d: `M${edge.left} ${edge.top}V${height - edge.bottom}H${width - edge.right}`,
      fill: "none",
      stroke: "var(--ink)",
    }),
    write("million MACs (multiply-accumulates) per image", width - edge.right, height - 6, "end"),
  );
  for (const [policy, curve] of Object.entries(curves)) {
    svg.append(
      draw("path", {
        d: "M" + curve.map((each) => `${x(each.macs)} ${y(each.accuracy)}`).join("L"),
        fill: "none",
        stroke: `var(--${policy})`,
        "stroke-width": policy === state.policy ? 2.5 : 1.2,
        "stroke-dasharray": policy === "selector" ? "6 4" : "none",
      }),
    );
  }
  const now = Object.entries(curves).map(([policy, curve]) => ({
    network: policy,
    text: policy,
    ...curve[state.positions[policy]],
  }));
  const taken = Object.values(curves).flatMap((curve) =>
    dots(curve.map((each) => [x(each.macs), y(each.accuracy)])),
  );
  for (const { network, accuracy, macs } of [...points, ...now]) {
    const [left, down] = [x(macs), y(accuracy)];
    const line = network === "teacher" || network === data.mean;
    svg.append(
      draw("path", {
        d: SHAPES[network] ?? STUDENT_SHAPES[placeOf(network)],
        transform: `translate(${left} ${down})`,
        fill: line ? "none" : colorOf(network),
        stroke: line ? colorOf(network) : "var(--paper)",
        "stroke-width": line ? 3 : 1,
      }),
    );
    taken.push({ left: left - 7, right: left + 7, top: down - 7, bottom: down + 7 });
  }
  for (const { network, text, accuracy, macs } of [...points, ...now]) {
    const place = bestPlace(
      x(macs),
      y(accuracy),
      7.2 * text.length,
      taken,
      edge.left,
      width,
      height - edge.bottom,
    );
    taken.push(place);
    const label = write(text, place.left, place.bottom - 3, "start");
    label.style.fill = colorOf(network);
    if (network === state.policy) label.style.fontWeight = "bold";
    svg.append(label);
  }
  find("plot").replaceChildren(svg);
}

/** Near a point, find the place for a label that overlaps least with the boxes in `taken`. */
function bestPlace(x, y, length, taken, start, end, bottom) {
  const places = [0, 16, 32]
    .flatMap((away) => [
      [x + 10 + away, y + 6],
      [x - 10 - away - length, y + 6],
      [x - length / 2, y - 9 - away],
      [x - length / 2, y + 22 + away],
      [x + 8, y - 9 - away],
      [x + 8, y + 22 + away],
      [x - 8 - length, y - 9 - away],
      [x - 8 - length, y + 22 + away],
    ])
    .map(([left, low]) => ({ left, right: left + length, top: low - 13, bottom: low }));
  const inside = places.filter(
    (p) => p.left > start && p.right < end && p.top > 0 && p.bottom < bottom,
  );
  const shared = (p, t, low, high) =>
    Math.max(0, Math.min(p[high], t[high]) - Math.max(p[low], t[low]));
  const area = (p, t) => shared(p, t, "left", "right") * shared(p, t, "top", "bottom");
  const covered = inside.map((p) => taken.reduce((sum, t) => sum + area(p, t), 0));
  return inside[covered.indexOf(Math.min(...covered))] ?? places[0];
}

/** Small boxes along a line through these points, 8 pixels apart. */
function dots(line) {
  return line.slice(1).flatMap(([right, low], k) => {
    const [left, high] = line[k];
    const steps = Math.ceil(Math.hypot(right - left, low - high) / 8);
    return Array.from({ length: steps }, (_, step) => {
      const [at, down] = [
        left + (step / steps) * (right - left),
        high + (step / steps) * (low - high),
      ];
      return { left: at - 1, right: at + 1, top: down - 1, bottom: down + 1 };
    });
  });
}

/** Round numbers between `low` and `high`, at most `about` + 1. */
function ticks(low, high, about) {
  const rough = (high - low) / about;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, k) => (first + k) * step);
}

function draw(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

function write(text, x, y, anchor) {
  const made = draw("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// ------------------------------------------------------------------ the confusion matrix

const MOST = 20; // maximum number of classes shown

function drawMatrix() {
  const classes = data.classes.length;
  const cells = new Uint32Array(classes * classes);
  const errors = new Uint32Array(classes);
  for (let k = 0; k < count; k++) {
    cells[labels[k] * classes + routed.answer[k]] += 1;
    errors[labels[k]] += labels[k] === routed.answer[k] ? 0 : 1;
  }
  const kept = Array.from(errors.keys())
    .sort((a, b) => errors[b] - errors[a])
    .slice(0, MOST)
    .sort((a, b) => a - b);
  say(
    "most",
    kept.length < classes ? `Shown are the ${MOST} of ${classes} classes with the most errors.` : "",
  );
  let worst = 1;
  for (const row of kept) {
    for (const answer of kept)
      if (row !== answer) worst = Math.max(worst, cells[row * classes + answer]);
  }
  const active = document.activeElement?.closest?.("#matrix button")?.dataset;
  const { label, answer: wanted } = state.filters;
  const table = find("matrix");
  const head = element(
    "tr",
    {},
    element("td"),
    ...kept.map((k) => element("th", { scope: "col" }, data.classes[k])),
  );
  const body = kept.map((row) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, data.classes[row]),
      ...kept.map((answer) => {
        const images = cells[row * classes + answer];
        const share = row === answer ? 0 : (0.85 * images) / worst;
        return element(
          "td",
          {},
          element(
            "button",
            {
              type: "button",
              tabindex: -1,
              class: `${row === answer ? "right" : ""} ${share > 0.68 ? "strong" : ""}`,
              style: { "--share": share },
              "aria-pressed": String(label === String(row) && wanted === String(answer)),
              "aria-label": `class ${data.classes[row]}, answer ${data.classes[answer]}: ${images} images`,
              "data-row": row,
              "data-answer": answer,
            },
            images ? String(images) : "",
          ),
        );
      }),
    ),
  );
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  const again =
    active && table.querySelector(`[data-row="${active.row}"][data-answer="${active.answer}"]`);
  (again ?? table.querySelector("button")).tabIndex = 0; // the Tab key reaches one cell, the arrow keys the others
  again?.focus();
}

function clickCell(event) {
  const cell = event.target.closest("button");
  if (!cell) return;
  const { row, answer } = cell.dataset;
  const pressed = cell.getAttribute("aria-pressed") === "true";
  state.filters.label = pressed ? "" : row;
  state.filters.answer = pressed ? "" : answer;
  cell.focus();
  changeFilters();
}

function moveInMatrix(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[
    event.key
  ];
  const cell = event.target.closest("td");
  if (!step || !cell) return;
  event.preventDefault();
  const rows = find("matrix").tBodies[0].rows;
  const next =
    rows[cell.parentElement.sectionRowIndex + step[0]]?.cells[
      cell.cellIndex + step[1]
    ]?.querySelector("button");
  if (!next) return;
  cell.querySelector("button").tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// ------------------------------------------------------------------ the images

const two = data.students.length === 2;
const RIGHT = {
  all: two ? "both students" : "all students",
  ...Object.fromEntries(data.students.map((student) => [student, `only ${name(student)}`])),
  none: two ? "neither student" : "no student",
  answer: "the system",
  "not answer": "not the system",
};

function isRight(k, who) {
  const right = data.students.filter((student) => predictions[student][k] === labels[k]);
  const given = routed.answer[k] === labels[k];
  if (who === "answer" || who === "not answer") return given === (who === "answer");
  if (who === "all") return right.length === data.students.length;
  return who === "none" ? !right.length : right.length === 1 && right[0] === who;
}

function matches(k) {
  const { label, answer, kind: context, right, by } = state.filters;
  return (
    (label === "" || labels[k] === Number(label)) &&
    (answer === "" || routed.answer[k] === Number(answer)) &&
    (context === "" || kind[k] === Number(context)) &&
    (right === "" || isRight(k, right)) &&
    (by === "" || routed.choice[k] === Number(by))
  );
}

function drawFilters() {
  const classes = Object.entries(data.classes);
  const filters = {
    label: ["class", classes],
    answer: ["answer", classes],
    ...(data.kinds.length > 1 ? { kind: ["context", Object.entries(data.kinds)] } : {}),
    right: ["correct", Object.entries(RIGHT)],
    by: ["answered by", policies[state.policy].answered.map((each, k) => [k, name(each)])],
  };
  const made = Object.entries(filters).map(([key, [title, options]]) => {
    const choice = element(
      "select",
      {
        id: `filter-${key}`,
        onchange: (event) => {
          state.filters[key] = event.target.value;
          changeFilters();
        },
      },
      element("option", { value: "" }, "any"),
      ...options.map(([value, text]) => element("option", { value }, text)),
    );
    choice.value = state.filters[key];
    return element("label", {}, title, choice);
  });
  const clear = () => {
    Object.keys(state.filters).forEach((key) => (state.filters[key] = ""));
    changeFilters();
  };
  find("filters").replaceChildren(
    ...made,
    element("button", { type: "button", id: "clear", onclick: clear }, "all images"),
  );
}

function changeFilters() {
  state.shown = 60;
  for (const [key, value] of Object.entries(state.filters)) {
    const choice = find(`filter-${key}`);
    if (choice) choice.value = value;
  }
  drawMatrix();
  drawGrid();
}

function drawGrid() {
  const found = [];
  for (let k = 0; k < count; k++) if (matches(k)) found.push(k);
  const wanted = new Set(found);
  let right = 0;
  for (const k of found) right += routed.answer[k] === labels[k] ? 1 : 0;
  const isFound = (k) => wanted.has(k);
  const others = ["teacher", ...data.students]
    .filter((network) => network in predictions)
    .map((network) => `${name(network)} ${percent(accuracyOf(network, isFound), 1)}`);
  say(
    "found",
    found.length
      ? `${whole(found.length)} of ${whole(count)} images. Accuracy on them: ` +
          `${state.policy} ${percent(right / found.length, 1)}, ${others.join(", ")}.`
      : "No image matches.",
  );
  const pictures = [...data.pictures.places.keys()].filter((at) =>
    wanted.has(data.pictures.places[at]),
  );
  say(
    "pictured",
    `This page contains pictures of ${whole(pictures.length)} of them. In total it contains ` +
      `${whole(data.pictures.places.length)} pictures: the first images that some students, ` +
      "none, or all classify correctly. Click a picture to see its probabilities.",
  );
  find("grid").replaceChildren(...pictures.slice(0, state.shown).map(tile));
  find("more").hidden = pictures.length <= state.shown;
}

function tile(at) {
  const k = data.pictures.places[at];
  const [answer, right] = [data.classes[routed.answer[k]], routed.answer[k] === labels[k]];
  return element(
    "button",
    {
      type: "button",
      "data-at": at,
      "aria-label":
        `class ${data.classes[labels[k]]}, answer ${answer} by ${answeredBy(k)}, ` +
        `${right ? "right" : "wrong"}`,
      onclick: () => openImage(at),
    },
    picture(at, 64),
    element("span", { class: right ? "" : "wrong" }, `${answer} ${right ? "\u2713" : "\u2717"}`),
  );
}

const answeredBy = (k) => name(policies[state.policy].answered[routed.choice[k]]);

function picture(at, side) {
  const { across, source } = data.pictures;
  const [row, left] = [Math.floor(at / across), at % across];
  return element("span", {
    class: "picture",
    style: {
      "background-image": `url(${source})`,
      "background-size": `${across * side}px auto`,
      "background-position": `${-left * side}px ${-row * side}px`,
    },
  });
}

function openImage(at) {
  const k = data.pictures.places[at];
  const context = data.kinds.length > 1 ? `, context ${data.kinds[kind[k]]}` : "";
  const networks = [...data.students, data.mean, "teacher"].filter((network) => network in top3);
  find("image").replaceChildren(
    element("form", { method: "dialog" }, element("button", { id: "close" }, "close")),
    element("h2", { id: "image-title" }, `${data.classes[labels[k]]}${context}`),
    picture(at, 160),
    element(
      "p",
      { id: "route" },
      `${routeOf(k)}: ${answeredBy(k)} answers. The answer is `,
      element("strong", {}, data.classes[routed.answer[k]]),
      ".",
    ),
    ...networks.flatMap((network) => [
      element("h3", {}, network === "teacher" ? `teacher, ${name(network)}` : name(network)),
      ...bars(network, at, labels[k]),
    ]),
    element(
      "p",
      { class: "soft" },
      "Probabilities after temperature scaling. Blue: the class of the image.",
    ),
  );
  find("image").showModal();
}

/** What the choice for image k depends on. */
function routeOf(k) {
  const { answered, scores, positions } = policies[state.policy];
  const position = state.positions[state.policy];
  if (state.policy === "selector") {
    const told = answered.map((network, at) => `${name(network)} ${scores[at][k].toFixed(3)}`);
    const threshold = thresholdsAt(state.policy, position);
    return `The selector's probabilities are ${told.join(", ")}; the threshold is ${threshold}`;
  }
  const steps = scores.slice(0, routed.choice[k] + 1).map((score, step) => {
    const side = step < routed.choice[k] ? "below" : "at least";
    const threshold = positions[position][step].toFixed(2);
    return `${name(answered[step])} is ${score[k].toFixed(3)}, ${side} the threshold of ${threshold}`;
  });
  return `The confidence of ${steps.join("; that of ")}`;
}

function bars(network, at, label) {
  const { each } = data.pictures;
  return Array.from({ length: each }, (_, rank) => {
    const answer = top3[network].labels[at * each + rank];
    const probability = top3[network].probabilities[at * each + rank];
    return element(
      "div",
      { class: "bar" },
      element("span", {}, data.classes[answer]),
      element("i", {
        class: answer === label ? "label" : "",
        style: { width: `${100 * probability}%` },
      }),
      element("b", {}, percent(probability, 1)),
    );
  });
}

// ------------------------------------------------------------------ events

for (const choice of document.getElementsByName("policy")) {
  choice.checked = choice.value === state.policy; // a browser may restore another choice
  choice.addEventListener("change", () => {
    state.policy = choice.value;
    changePolicy();
  });
}
find("threshold").addEventListener("input", (event) => {
  state.positions[state.policy] = Number(event.target.value);
  update();
});
find("saved").addEventListener("click", () => {
  state.positions[state.policy] = policies[state.policy].saved;
  update();
});
find("matrix").addEventListener("click", clickCell);
find("matrix").addEventListener("keydown", moveInMatrix);
find("more").addEventListener("click", () => {
  state.shown += 120;
  drawGrid();
});
say("count", whole(count));
new ResizeObserver(() => drawPlot()).observe(find("plot"));
changePolicy();
