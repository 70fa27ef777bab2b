// What the keys, the buttons and the fields of the page do.

let list = [...names.keys()];

function say(text) {
  $("said").textContent = text;
}

function columnsOfGrid() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function select(number, { focus = true } = {}) {
  const before = cards[view.current].card;
  before.setAttribute("aria-selected", "false");
  before.tabIndex = -1;
  view.current = number;
  const { card } = cards[number];
  card.setAttribute("aria-selected", "true");
  card.tabIndex = 0;
  if (view.isSingle) showSingle();
  else {
    if (focus) card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }
  keepView();
}

// The image that is `step` places further in the list; the last or the first one at its ends.
function move(step) {
  if (!list.length) return;
  const after = list.findIndex((number) => number >= view.current);
  const isIn = list[after] === view.current;
  const from = after < 0 ? list.length : after;
  const place = isIn ? from + step : step > 0 ? from + step - 1 : from + step;
  const isOutside = place < 0 || place >= list.length;
  if (isOutside && Math.abs(step) > 1) return; // no row above or below
  select(list[Math.min(Math.max(place, 0), list.length - 1)]);
}

function moveToOpen() {
  const open = (number) => !entryOf(number).grade;
  const next = list.find((number) => number > view.current && open(number)) ?? list.find(open);
  if (next === undefined) say("All images that are shown are graded.");
  else select(next);
}

function grade(value) {
  const number = view.current;
  if (!list.length) return;
  grades.set(sourceOf(number), names[number], { grade: value });
  afterChange([number]);
  say(value ? `${names[number]}: grade ${value}` : `${names[number]}: no grade`);
  if (value) move(1);
}

function undo() {
  const found = grades.undo();
  if (!found) return say("There is nothing to undo.");
  refreshAll();
  warnIfLost();
  const number = numbers.get(keyOf(found.source, found.id));
  if (number !== undefined && found.count === 1) select(number);
  return say("The last change is undone.");
}

function afterChange(changed) {
  for (const number of changed) refresh(number);
  refreshCounts();
  if (view.isSingle) showSingle();
  warnIfLost();
}

function warnIfLost() {
  if (!grades.isKept) warn("This browser does not keep the grades. Save them to a file before you close the page.");
}

function applyFilter() {
  const which = $("which").value;
  const wanted = $("find").value.trim().toLowerCase();
  const least = Number($("least").value) || 0;
  list = [...names.keys()].filter((number) => {
    const { grade: given, note } = entryOf(number);
    const isKind = { all: true, open: !given, note: Boolean(note) }[which] ?? given === which;
    const isFound = !wanted || `${names[number]}\n${note}`.toLowerCase().includes(wanted);
    return isKind && isFound && (scores[number] ?? 0) >= least;
  });
  const kept = new Set(list);
  for (const [number, { card }] of cards.entries()) card.hidden = !kept.has(number);
  $("none").hidden = list.length > 0;
  say(`${list.length} images are shown.`);
  if (list.length && !kept.has(view.current)) select(list[0], { focus: false });
}

function setSingle(isSingle) {
  view.isSingle = isSingle;
  single.hidden = !isSingle;
  $("grid").hidden = isSingle;
  $("view").setAttribute("aria-pressed", isSingle);
  $("view").textContent = isSingle ? "All images" : "Single image";
  if (isSingle) {
    window.scrollTo(0, 0);
    document.activeElement?.blur?.();
  }
  select(view.current);
}

const SLIDERS = {
  stretch: { to: (x) => (x > 0 ? 10 ** (x / 25 - 1) : 0), from: (y) => (y > 0 ? 25 * (Math.log10(y) + 1) : 0), told: (y) => (y ? y.toPrecision(2) : "linear") },
  brightness: { to: (x) => 10 ** (x / 100), from: (y) => 100 * Math.log10(y), told: (y) => `${y.toFixed(1)} ×` },
  black: { to: (x) => x / 10, from: (y) => 10 * y, told: (y) => (content.stamps.linear ? y.toFixed(1) : `${y.toFixed(1)} σ`) },
  colour: { to: (x) => x / 100, from: (y) => 100 * y, told: (y) => `${Math.round(100 * y)} %` },
};

function showLook() {
  for (const [name, { from, told }] of Object.entries(SLIDERS)) {
    $(name).value = from(view.look[name]);
    $(name).nextElementSibling.textContent = told(view.look[name]);
  }
  $("band").value = view.look.band;
  for (const name of ["alike", "inverted", "smooth"]) $(name).checked = view.look[name];
}

let isPlanned = false;

function changeLook(change) {
  Object.assign(view.look, change);
  showLook();
  keepView();
  if (isPlanned) return;
  isPlanned = true;
  requestAnimationFrame(() => {
    isPlanned = false;
    drawAll();
  });
}

// A step of a slider, by a key.
function nudge(name, step) {
  const { to, from } = SLIDERS[name];
  const value = Math.min(Math.max(from(view.look[name]) + step, Number($(name).min)), Number($(name).max));
  changeLook({ [name]: to(Math.round(value)) });
}

function setTheme(theme) {
  view.theme = theme;
  const isDark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark", isDark);
  $("theme").textContent = isDark ? "Light" : "Dark";
}

function setBlind(isBlind) {
  view.isBlind = isBlind;
  document.body.classList.toggle("blind", isBlind);
  for (const number of cards.keys()) refresh(number);
  if (view.isSingle) showSingle();
}

function setSide(side) {
  view.side = Math.min(Math.max(Number(side) || 150, 80), 320);
  document.documentElement.style.setProperty("--side", `${view.side}px`);
}

function fileOfGrades() {
  const rows = new Map(names.map((name, k) => [keyOf(sourceOf(k), name), { rank: k + 1, score: scores[k] ?? "" }]));
  return grades.csv(rows);
}

function download() {
  const address = URL.createObjectURL(new Blob([fileOfGrades()], { type: "text/csv" }));
  const who = grades.grader.trim().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  element("a", { href: address, download: who ? `grades-${who}.csv` : "grades.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function load(text, name) {
  // Of names that come once on this page.
  const sources = new Map();
  for (const [number, id] of names.entries()) sources.set(id, sources.has(id) ? "" : sourceOf(number));
  try {
    const count = grades.read(text, (id) => sources.get(id) || "");
    refreshAll();
    warn("");
    warnIfLost();
    say(`${count} grades were taken from ${name}.`);
  } catch (error) {
    warn(`${name}: ${error.message}.`);
  }
}

const KEYS = {
  a: () => grade("A"), b: () => grade("B"), c: () => grade("C"), n: () => grade("not"), x: () => grade("not"),
  u: undo, delete: () => grade(""), backspace: () => grade(""), " ": moveToOpen,
  arrowleft: () => move(-1), arrowright: () => move(1),
  arrowup: () => move(view.isSingle ? -1 : -columnsOfGrid()), arrowdown: () => move(view.isSingle ? 1 : columnsOfGrid()),
  home: () => list.length && select(list[0]), end: () => list.length && select(list.at(-1)),
  enter: () => setSingle(true), escape: () => setSingle(false), m: writeNote, "/": () => $("find").focus(),
  1: () => oneBand("red"), 2: () => oneBand("green"), 3: () => oneBand("blue"), 0: () => oneBand(""),
  "+": () => nudge("brightness", 10), "=": () => nudge("brightness", 10), "-": () => nudge("brightness", -10),
  ".": () => nudge("stretch", 5), ",": () => nudge("stretch", -5), i: () => changeLook({ inverted: !view.look.inverted }),
  r: () => changeLook({ ...own }), "?": () => $("keys").showModal(),
};
const ONCE = new Set(["a", "b", "c", "n", "x", "u", "delete", "backspace", "enter"]);

function oneBand(band) {
  if ([...$("band").options].some((option) => option.value === band)) changeLook({ band });
}

function writeNote() {
  if (!view.isSingle) setSingle(true);
  $("note").focus();
}

// Whether a key is for the element that has the focus.
function isForElement(target, key) {
  if (target.matches("textarea, select, input:not([type=range], [type=checkbox])")) return true;
  if (target.matches("input[type=range]") && /^(arrow|home|end|page)/.test(key)) return true;
  return target.matches("button, summary, input") && (key === "enter" || key === " ");
}

function onKey(event) {
  const key = event.key.toLowerCase();
  const isUndo = key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey;
  if ($("keys").open || event.isComposing || (!isUndo && (event.ctrlKey || event.metaKey || event.altKey))) return;
  if (isForElement(event.target, key)) {
    if (key === "escape" || (key === "enter" && event.target.matches("input"))) event.target.blur();
    return;
  }
  const act = isUndo ? undo : Object.hasOwn(KEYS, key) ? KEYS[key] : null;
  if (!act) return;
  event.preventDefault();
  if (!(event.repeat && (ONCE.has(key) || isUndo))) act();
}

function onGridClick(event) {
  const card = event.target.closest(".card");
  if (!card) return;
  const number = Number(card.dataset.number);
  if (number === view.current) setSingle(true);
  else select(number);
}

function connect() {
  const on = (name, kind, act) => $(name).addEventListener(kind, (event) => act(event.target, event));
  document.addEventListener("keydown", onKey);
  // A button that was clicked, or a list from which was chosen, takes no further keys: these are grades.
  document.addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur());
  for (const name of ["which", "band"]) on(name, "change", (field) => field.blur());
  $("grid").addEventListener("click", onGridClick);
  on("view", "click", () => setSingle(!view.isSingle));
  for (const name of ["which", "find", "least"]) on(name, "input", applyFilter);
  for (const [name, { to }] of Object.entries(SLIDERS)) on(name, "input", ({ value }) => changeLook({ [name]: to(Number(value)) }));
  on("band", "input", ({ value }) => changeLook({ band: value }));
  for (const name of ["alike", "inverted", "smooth"]) on(name, "input", ({ checked }) => changeLook({ [name]: checked }));
  on("reset", "click", () => changeLook({ ...own }));
  on("width", "input", ({ value }) => (setSide(value), keepView()));
  on("blind", "input", ({ checked }) => (setBlind(checked), keepView()));
  on("theme", "click", () => (setTheme(document.documentElement.classList.contains("dark") ? "light" : "dark"), keepView()));
  on("grader", "input", ({ value }) => (grades.name(value), warnIfLost()));
  on("note", "input", ({ value }) => {
    grades.set(sourceOf(view.current), names[view.current], { note: value });
    afterChange([view.current]);
  });
  on("save", "click", download);
  on("load", "click", () => $("file").click());
  on("file", "change", async (field) => {
    for (const file of field.files) load(await file.text(), file.name);
    field.value = "";
  });
  on("help", "click", () => $("keys").showModal());
  $("keys").querySelector(".main").addEventListener("click", () => $("keys").close());
  on("clear", "click", () => {
    const count = grades.clear();
    $("keys").close();
    refreshAll();
    say(`${count} grades and notes are removed. U brings them back.`);
  });
  for (const button of single.querySelectorAll(".grades button")) button.addEventListener("click", () => grade(button.dataset.grade));
  on("back", "click", () => move(-1));
  on("forward", "click", () => move(1));
  on("undo", "click", undo);
  $("similar").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select(Number(button.dataset.number));
  });
  window.addEventListener("storage", (event) => {
    const kept = event.key === grades.key && grades.stored();
    if (kept && grades.merge(kept.entries)) refreshAll();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!grades.isKept) event.preventDefault();
  });
  new ResizeObserver(() => document.documentElement.style.setProperty("--head", `${document.querySelector("header").offsetHeight}px`)).observe(document.querySelector("header"));
}

function begin() {
  const isGrey = new Set(content.bands).size === 1;
  const bands = isGrey ? [] : ["red", "green", "blue"].map((value, k) => element("option", { value }, content.bands[k]));
  $("band").replaceChildren(element("option", { value: "" }, isGrey ? content.bands[0] : content.bands.join(", ")), ...bands);
  document.querySelector(".picture").style.aspectRatio = `${content.stamps.width} / ${content.stamps.height}`;
  $("grader").value = grades.grader;
  $("width").value = view.side;
  $("blind").checked = view.isBlind;
  setSide(view.side);
  setTheme(view.theme);
  makeCards();
  setBlind(view.isBlind);
  connect();
  showLook();
  showScale();
  refreshCounts();
  setSingle(view.isSingle);
  loadNext();
  grades.save();
  warnIfLost();
}

begin();
