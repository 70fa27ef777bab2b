// The images of the page: their cards, which are drawn when they come into view, and the view of a single one.

const $ = (name) => document.getElementById(name);
const content = JSON.parse($("content").textContent);
const { id: names, sources, source: sourceNumbers, score: scores } = content.candidates;
const numberOfChunks = Math.ceil(names.length / content.stamps.chunk);
const storage = browserStorage();
const KEPT = `deeplense-candidates/${content.key}`;
const journal = new Journal(KEPT, (entries) => {
  if (grades.merge(entries)) refreshAll();
});
const grades = new Grades(KEPT, storage, journal);
const drawer = new Drawer(content.stamps);
const VIEW = `${KEPT}/view`;
const own = content.stamps.linear ? { ...DEFAULTS, stretch: 0, black: 0 } : DEFAULTS;
const view = { look: { ...own }, side: 150, current: 0, isSingle: false, isBlind: false, theme: "", ...storedView() };
view.look = { ...own, ...view.look };
view.current = Math.min(Math.max(0, Math.trunc(Number(view.current)) || 0), names.length - 1);

const [SEEN, COMPLETE] = ["deeplense-seen", "deeplense-complete"];
const cards = [];
const visible = new Set();
const numbers = new Map(names.map((name, number) => [keyOf(sourceOf(number), name), number]));

function browserStorage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

function storedView() {
  try {
    return JSON.parse(storage.getItem(VIEW)) || {};
  } catch {
    return {};
  }
}

function keepView() {
  try {
    storage.setItem(VIEW, JSON.stringify(view));
  } catch {
    // The view is then as it was at first; grades say so themselves.
  }
}

function sourceOf(number) {
  return sources[sourceNumbers[number]];
}

function entryOf(number) {
  return grades.of(sourceOf(number), names[number]);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shown(score) {
  if (score === null) return "";
  if (score >= 0.9995 && score < 1) return score.toPrecision(6);
  return score > 0 && score < 0.01 ? score.toPrecision(2) : score.toFixed(3);
}

// Pixels: files are loaded one after another, those of images in view first.
const loading = { started: new Set(), done: new Set(), active: 0 };

function loadNext() {
  while (loading.active < 2) {
    const inView = [...visible].map((number) => drawer.chunkOf(number));
    if (view.isSingle) inView.unshift(drawer.chunkOf(view.current));
    const all = [...inView, ...Array(numberOfChunks).keys()];
    const chunk = all.find((each) => !loading.started.has(each));
    if (chunk === undefined) return;
    loading.started.add(chunk);
    loading.active += 1;
    const file = `stamps-${String(chunk).padStart(4, "0")}.js`;
    const script = element("script", { src: file });
    const end = () => {
      loading.active -= 1;
      script.remove();
      loadNext();
    };
    script.onload = end;
    script.onerror = () => {
      warn(`The file ${file} is missing beside this page: copy the whole folder.`);
      end();
    };
    document.head.append(script);
  }
}

// Called by each file of pixels.
function takeStamps(chunk, text) {
  drawer.take(chunk, text);
  loading.done.add(chunk);
  for (const number of visible) if (drawer.chunkOf(number) === chunk) drawCard(number);
  if (view.isSingle) drawSingle();
  markTimes();
}

// What tests measure: when all images in view were drawn first, and when all pixels were there.
function markTimes() {
  const isMarked = (name) => performance.getEntriesByName(name).length > 0;
  const isDrawn = visible.size > 0 && [...visible].every((number) => drawer.has(number));
  if (isDrawn && !isMarked(SEEN)) performance.mark(SEEN);
  if (loading.done.size === numberOfChunks && !isMarked(COMPLETE)) performance.mark(COMPLETE);
}

function warn(text) {
  $("warning").textContent = text;
  $("warning").hidden = !text;
}

const observer = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    const number = Number(target.dataset.number);
    if (isIntersecting) {
      visible.add(number);
      drawCard(number);
    } else if (visible.delete(number)) release(cards[number].canvas);
  }
  markTimes();
  loadNext();
}, { rootMargin: "400px" });

function drawOn(canvas, number) {
  if (drawer.draw(canvas, number, view.look)) canvas.dataset.drawn = "";
}

function drawCard(number) {
  drawOn(cards[number].canvas, number);
}

// A canvas out of view holds no pixels, so that many thousand images need little memory.
function release(canvas) {
  canvas.width = canvas.height = 0;
  delete canvas.dataset.drawn;
}

function drawAll() {
  for (const number of visible) drawCard(number);
  if (view.isSingle) drawSingle();
}

function makeCards() {
  const ratio = `${content.stamps.width} / ${content.stamps.height}`;
  for (const [number, name] of names.entries()) {
    const canvas = element("canvas", { "aria-hidden": "true" });
    const box = element("div", { class: "pixel-box" }, canvas);
    box.style.aspectRatio = ratio;
    const [badge, memo] = [element("span", { class: "badge" }), element("span", { class: "memo" }, "note")];
    const title = element("span", { title: name }, element("bdi", {}, name));
    const foot = element("div", { class: "foot" }, title, element("span", { class: "score" }, shown(scores[number])));
    const rank = element("span", { class: "rank" }, String(number + 1));
    const card = element("div", { class: "card", role: "option", tabindex: "-1", "data-number": number }, box, rank, badge, memo, foot);
    cards.push({ card, canvas, badge, memo });
    refresh(number);
    observer.observe(card);
  }
  $("grid").append(...cards.map(({ card }) => card));
}

const letter = (grade) => (grade === "not" ? "N" : grade);

// Shows the grade and the note of an image.
function refresh(number) {
  const { card, badge, memo } = cards[number];
  const { grade, note } = entryOf(number);
  if (grade) card.dataset.grade = grade;
  else delete card.dataset.grade;
  badge.textContent = letter(grade);
  memo.hidden = !note;
  const told = [`${names[number]}`, grade ? `grade ${grade}` : "not graded", ...(note ? ["with a note"] : [])];
  if (!view.isBlind) told.unshift(`rank ${number + 1}, score ${shown(scores[number])}`);
  card.setAttribute("aria-label", told.join(", "));
}

function refreshAll() {
  for (const number of cards.keys()) refresh(number);
  refreshCounts();
  if (view.isSingle) showSingle();
}

function refreshCounts() {
  const counts = Object.fromEntries(GRADES.map((grade) => [grade, 0]));
  for (const number of names.keys()) {
    const { grade } = entryOf(number);
    if (grade) counts[grade] += 1;
  }
  const done = GRADES.reduce((sum, grade) => sum + counts[grade], 0);
  for (const span of $("bar").children) span.style.width = `${(100 * counts[span.dataset.grade]) / names.length}%`;
  $("bar").setAttribute("aria-valuemax", names.length);
  $("bar").setAttribute("aria-valuenow", done);
  const each = GRADES.map((grade) => `${grade} ${counts[grade]}`).join(" · ");
  $("counts").replaceChildren(element("b", {}, `${done} of ${names.length} graded`), ` · ${each}`);
}

const single = $("single");
const bigCanvas = single.querySelector("canvas");

function drawSingle() {
  drawOn(bigCanvas, view.current);
  for (const button of $("similar").querySelectorAll("button")) {
    drawOn(button.querySelector("canvas"), Number(button.dataset.number));
  }
}

function showSingle() {
  const number = view.current;
  const { grade, note } = entryOf(number);
  single.querySelector("h2").textContent = names[number];
  single.querySelector("dl").replaceChildren(...factsOf(number).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  for (const button of single.querySelectorAll(".grades button")) {
    button.setAttribute("aria-pressed", button.dataset.grade === grade);
  }
  if (document.activeElement !== $("note")) $("note").value = note;
  showSimilar(number);
  if (!drawer.has(number)) {
    delete bigCanvas.dataset.drawn;
    loadNext();
  }
  drawSingle();
}

function factsOf(number) {
  const { spread, ra, dec } = content.candidates;
  const facts = [["source", sourceOf(number)]];
  if (ra[number] !== null && dec[number] !== null) {
    facts.unshift(["RA, Dec", `${ra[number].toFixed(5)}°, ${dec[number].toFixed(5)}°`]);
  }
  if (view.isBlind) return facts;
  const uncertain = spread[number] === null ? "" : ` ± ${shown(spread[number])}`;
  return [["rank", `${number + 1} of ${names.length}`], [content.score_name, shown(scores[number]) + uncertain], ...facts];
}

function showSimilar(number) {
  const found = content.similar[number] || [];
  $("similar").hidden = !found.length;
  $("similar").lastElementChild.replaceChildren(...found.map(([other, cosine]) => {
    const box = element("span", { class: "pixel-box" }, element("canvas", { "aria-hidden": "true" }));
    box.style.display = "block";
    box.style.aspectRatio = `${content.stamps.width} / ${content.stamps.height}`;
    const { grade } = entryOf(other);
    const badge = element("span", { class: "badge", "data-grade": grade }, letter(grade));
    const label = `${names[other]}, similarity ${cosine.toFixed(2)}${grade ? `, grade ${grade}` : ""}`;
    return element("button", { class: "like", "data-number": other, "aria-label": label, title: names[other] }, box, badge, element("small", {}, cosine.toFixed(2)));
  }));
}

// A bar of a round number of arcseconds, at most a third of the image.
function showScale() {
  const side = content.pixel_scale_arcsec * content.stamps.width;
  const length = [60, 30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1].find((each) => each <= side / 3);
  if (!content.pixel_scale_arcsec || !length) return;
  $("scale").hidden = false;
  $("scale").style.width = `${(100 * length) / side}%`;
  $("scale").firstElementChild.textContent = `${length}″`;
}
