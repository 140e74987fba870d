// The page: takes films, keeps the worklist in order, shows the answer to the chosen one, keeps opinions.

import * as api from "./api.js";
import { Viewer } from "./viewer.js";

const AT_ONCE = 3; // uploads
const find = (selector) => document.querySelector(selector);
const films = []; // {id, file, name, answer, error, opinion, button}
const rank = { positive: 0, uncertain: 1, negative: 2 };
let model = null;
let chosen = null;
let touched = false; // whether a reader has chosen a film
let next = 0; // index of the first film that nobody reads yet
let reading = 0;

const percent = (value) => {
  const shown = 100 * value;
  if (shown > 0 && shown < 0.1) return "< 0.1 %";
  if (shown < 100 && shown > 99.9) return "> 99.9 %";
  return `${shown.toFixed(shown < 1 || shown > 99 ? 1 : 0)} %`;
};

const unbroken = (text) => text.replaceAll(" %", "\u00a0%");

const viewer = new Viewer(find("#canvas"), (one) => {
  find("#window").textContent = one.source
    ? `window ${Math.round(one.window)}  level ${Math.round(one.level)}  zoom ${one.zoom.toFixed(1)}\n`
      + `film ${one.film.width} × ${one.film.height}, shown with ${one.film.bitmap.width} × ${one.film.bitmap.height}`
    : "";
  find("#invert").setAttribute("aria-pressed", String(one.inverted));
});

function prevalence() {
  const value = Number(find("#prevalence").value) / 100;
  return value > 0 && value < 1 ? String(value) : "";
}

// ---- taking films

function add(files) {
  for (const file of files) {
    if (file.name.startsWith(".")) continue;
    films.push({ id: films.length, file, name: file.webkitRelativePath || file.name });
    find("main").className = "filled";
  }
  read();
}

async function entriesOf(entry) {
  if (entry.isFile) return [await new Promise((done, fail) => entry.file(done, fail))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    for (const one of some) found.push(...(await entriesOf(one)));
  }
  return found;
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return add(transfer.files);
  for (const entry of entries) add(await entriesOf(entry));
}

function read() {
  while (reading < AT_ONCE && next < films.length) {
    const film = films[next];
    next += 1;
    reading += 1;
    ask(film).finally(() => {
      reading -= 1;
      progress();
      read();
    });
  }
  progress();
}

async function ask(film) {
  try {
    do { // the prevalence may be changed meanwhile
      film.shownAt = prevalence();
      film.answer = await api.predict(film.file, film.shownAt);
    } while (film.shownAt !== prevalence());
    film.error = null;
  } catch (error) {
    film.error = error;
  }
  place(film);
}

function progress() {
  const done = films.filter((film) => film.answer || film.error).length;
  find("#progress-row").hidden = !films.length || done === films.length;
  find("#progress").value = films.length ? done / films.length : 0;
  find("#progress-text").textContent = `${done} of ${films.length}`;
  const counts = { positive: 0, uncertain: 0, negative: 0 };
  for (const film of films) if (film.answer) counts[film.answer.kind] += 1;
  const failed = films.filter((film) => film.error).length;
  const words = model?.decisions ?? {};
  const text = [
    ...Object.entries(counts).filter(([, count]) => count).map(([kind, count]) => `${count} ${words[kind] ?? kind}`),
    ...(failed ? [`${failed} not read`] : []),
  ].join(", ");
  find("#summary").textContent = text;
  if (!films.length || done < films.length) return;
  find("#status").textContent = `All ${done} films are read: ${text}`;
  const [first] = ordered();
  if (first && first !== chosen && !touched) choose(first);
}

// ---- the worklist

function before(one, other) {
  const kinds = rank[one.answer.kind] - rank[other.answer.kind];
  return kinds || other.answer.probability - one.answer.probability || one.id - other.id;
}

function place(film) {
  if (film.error) {
    const line = document.createElement("li");
    line.textContent = `${film.name}: ${film.error.message}`;
    find("#failed ul").append(line);
    find("#failed summary").textContent = `Not read (${find("#failed ul").childElementCount})`;
    find("#failed").hidden = false;
    return;
  }
  const focused = film.button && document.activeElement === film.button;
  film.button?.parentElement.remove();
  const [item, button] = [document.createElement("li"), document.createElement("button")];
  button.type = "button";
  button.className = film.answer.kind;
  for (const [name, text] of [
    ["file", film.name],
    ["number", percent(film.answer.probability)],
    ["what", film.answer.decision + (film.answer.reason ? `: ${film.answer.reason}` : "") + (film.opinion ? ` · ${film.opinion}` : "")],
  ]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    button.append(part);
  }
  button.addEventListener("click", () => { touched = true; choose(film); });
  item.append(button);
  film.button = button;
  const later = ordered().find((other) => other !== film && before(film, other) < 0);
  find("#worklist").insertBefore(item, later?.button.parentElement ?? null);
  if (chosen === film) button.setAttribute("aria-current", "true");
  if (focused) button.focus();
  if (!chosen) choose(film);
}

function ordered() {
  return films.filter((film) => film.button?.isConnected).sort(before);
}

function step(by) {
  const list = ordered();
  const at = list.indexOf(chosen) + by;
  if (list[at]) {
    touched = true;
    choose(list[at]);
    list[at].button.scrollIntoView({ block: "nearest" });
  }
}

// ---- the chosen film

async function choose(film) {
  chosen?.button?.removeAttribute("aria-current");
  chosen = film;
  film.button.setAttribute("aria-current", "true");
  find("#viewer").hidden = false;
  find("#viewer-title").textContent = film.name;
  find("#canvas").setAttribute("aria-label", `The film ${film.name}`);
  find("#heat-note").textContent = "";
  describe(film);
  viewer.reset();
  viewer.show(null);
  try {
    const picture = await api.image(film.file);
    if (chosen === film) viewer.show(picture);
    if (chosen === film && viewer.showHeat) await heat(film);
  } catch (error) {
    if (chosen === film) find("#heat-note").textContent = error.message;
  }
}

function describe(film) {
  const { answer } = film;
  find("#answer").className = answer.kind;
  find("#decision").textContent = answer.decision;
  find("#probability").textContent = percent(answer.probability);
  find("#scale-value").style.width = `${100 * answer.probability}%`;
  find("#scale-point").style.left = `${100 * answer.operating_point}%`;
  find("#words").textContent = unbroken(answer.words);
  find("#reasons").replaceChildren(...answer.flags.map((flag) => {
    const line = document.createElement("li");
    line.textContent = flag.meaning;
    return line;
  }));
  find("#note").value = film.note ?? "";
  find("#opinion-state").textContent = "";
  for (const button of document.querySelectorAll("[data-opinion]")) {
    button.setAttribute("aria-pressed", String(button.dataset.opinion === film.opinion));
  }
}

async function heat(film) {
  find("#heat-note").textContent = "The heat map is drawn.";
  film.heat ??= await api.heatMap(film.file);
  if (chosen !== film) return;
  viewer.heat = film.heat.bitmap ?? null;
  find("#heat-note").textContent = film.heat.reason ?? "Warm: where the evidence lies, not why. It is no proof.";
  viewer.draw();
}

async function toggleHeat() {
  viewer.showHeat = !viewer.showHeat;
  find("#heat").setAttribute("aria-pressed", String(viewer.showHeat));
  viewer.draw();
  if (!viewer.showHeat) find("#heat-note").textContent = "";
  else if (chosen) await heat(chosen).catch((error) => { find("#heat-note").textContent = error.message; });
}

// ---- opinions

function labelOf(film, opinion) {
  const [negative, positive] = model.classes;
  if (opinion === "unsure") return "";
  return (film.answer.label === positive) === (opinion === "agree") ? positive : negative;
}

async function say(opinion) {
  const film = chosen;
  if (!film) return;
  film.opinion = opinion;
  describe(film);
  place(film);
  find("#download").hidden = false;
  if (!model.keeps_feedback) {
    find("#opinion-state").textContent = "Kept in this page until you download it.";
    return;
  }
  try {
    await api.sendOpinion(opinionOf(film));
    find("#opinion-state").textContent = "Kept on the server.";
  } catch (error) {
    find("#opinion-state").textContent = error.message;
  }
}

function opinionOf(film) {
  return {
    sha256: film.answer.sha256,
    label: labelOf(film, film.opinion),
    opinion: film.opinion,
    note: film.note ?? "",
    answer: film.answer.decision,
    probability: film.answer.probability,
  };
}

function download() {
  const cell = (value) => `"${String(value).replace(/^[=+\-@]/, "'$&").replaceAll('"', '""')}"`;
  const rows = films.filter((film) => film.opinion).map((film) => Object.values(opinionOf(film)).map(cell).join(","));
  const text = ["sha256,label,opinion,note,answer,probability", ...rows].join("\n") + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
}

// ---- start

async function changePrevalence() {
  for (const film of [...(chosen ? [chosen] : []), ...films]) {
    if (!film.answer || film.shownAt === prevalence()) continue;
    await ask(film);
    if (film === chosen) describe(film);
  }
}

function listen() {
  const drop = find("#drop");
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    dropped(event.dataTransfer);
  });
  for (const name of ["#files", "#folder"]) {
    find(name).addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
  }
  find("#zoom-in").addEventListener("click", () => viewer.scale(1.25));
  find("#zoom-out").addEventListener("click", () => viewer.scale(0.8));
  find("#reset").addEventListener("click", () => viewer.reset());
  find("#invert").addEventListener("click", () => viewer.invert());
  find("#heat").addEventListener("click", toggleHeat);
  find("#opacity").addEventListener("input", (event) => { viewer.opacity = event.target.value / 100; viewer.draw(); });
  find("#drag").addEventListener("change", (event) => { viewer.drag = event.target.value; });
  find("#prevalence").addEventListener("change", changePrevalence);
  find("#note").addEventListener("input", (event) => { if (chosen) chosen.note = event.target.value; });
  find("#note").addEventListener("change", () => { if (chosen?.opinion) say(chosen.opinion); });
  find("#download").addEventListener("click", download);
  find("#help-open").addEventListener("click", () => find("#help").showModal());
  find("#opinion").addEventListener("submit", (event) => { event.preventDefault(); find("#note").blur(); });
  for (const button of document.querySelectorAll("[data-opinion]")) {
    button.addEventListener("click", () => say(button.dataset.opinion));
  }
  find("#theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    localStorage.setItem("xray-theme", document.documentElement.dataset.theme = dark ? "light" : "dark");
  });
  document.addEventListener("keydown", key);
}

const keys = {
  j: () => step(1), k: () => step(-1), "+": () => viewer.scale(1.25), "-": () => viewer.scale(0.8),
  i: () => viewer.invert(), h: toggleHeat, r: () => viewer.reset(), "[": () => viewer.adjust(-6, 0),
  "]": () => viewer.adjust(6, 0), "{": () => viewer.adjust(0, -10), "}": () => viewer.adjust(0, 10),
  a: () => say("agree"), d: () => say("disagree"), u: () => say("unsure"), n: () => find("#note").focus(),
  "?": () => find("#help").showModal(),
};

function key(event) {
  if (event.key === "Escape" && event.target.matches("#note, #prevalence")) event.target.blur();
  const typing = event.target.matches("input:not([type=range]), select, textarea") || find("dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}

async function start() {
  const theme = localStorage.getItem("xray-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  listen();
  model = await api.model();
  find("#model").textContent = `Model ${model.name}, version ${model.version}. Question: ${model.question}`;
  find("#evidence").textContent = unbroken(`${model.evidence} ${model.promise}`);
  find("#use").textContent = `${model.use} ${model.limitations.join(" ")}`;
  find("#prevalence").placeholder = model.prevalence ? (100 * model.prevalence).toFixed(0) : "as is";
  find("#prevalence").disabled = !model.prevalence;
}

start().catch((error) => { find("#summary").textContent = `The server does not answer: ${error.message}`; });
