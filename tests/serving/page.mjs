// Drives the page of `xray serve` in Chromium: node page.mjs CHROMIUM URL TOKEN FOLDER OUTPUT
// FOLDER holds films and one file that is none; OUTPUT gets screenshots and the downloaded opinions.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [executablePath, url, token, folder, output] = process.argv.slice(2);
const axe = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const files = fs.readdirSync(folder).map((name) => path.join(folder, name));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const wrong = []; // what a page must never do

async function open(width, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height: 950 }, colorScheme });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error" && !/status of (401|422)/.test(message.text())) wrong.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(blob|data):/.test(request.url())) wrong.push(request.url());
  });
  await page.goto(url);
  await page.waitForSelector("#login[open]");
  await page.keyboard.type(token);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#model").textContent);
  return page;
}

async function accessible(page, where) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const serious = violations.filter((one) => ["serious", "critical"].includes(one.impact));
  console.log(`${where}: axe-core ${violations.length} findings, ${serious.length} serious`);
  assert.deepEqual(serious.map((one) => [one.id, one.nodes[0].html]), [], where);
}

async function allRead(page) {
  await page.waitForSelector("#worklist button");
  await page.waitForFunction((count) => document.querySelectorAll("#worklist button, #failed li").length === count
    && document.querySelector("#progress-row").hidden, files.length);
}

const text = (page, selector) => page.textContent(selector);
const picture = (page) => page.evaluate(() => document.querySelector("#canvas").toDataURL());
const painted = (page, before) => page.waitForFunction((old) => document.querySelector("#canvas").toDataURL() !== old, before);

async function drop(page) {
  const dropped = files.map((file) => ({ name: path.basename(file), data: fs.readFileSync(file).toString("base64") }));
  const transfer = await page.evaluateHandle((all) => {
    const made = new DataTransfer();
    for (const { name, data } of all) {
      made.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name));
    }
    return made;
  }, dropped);
  const started = Date.now();
  await page.dispatchEvent("#drop", "drop", { dataTransfer: transfer });
  await page.waitForSelector("#worklist button");
  console.log(`dropped to first answer shown: ${Date.now() - started} ms`);
  await allRead(page);
  console.log(`${files.length} files: ${Date.now() - started} ms`);
}

async function worklist(page) {
  const kinds = await page.$$eval("#worklist button", (all) => all.map((one) => one.className));
  const rank = kinds.map((kind) => ["positive", "uncertain", "negative"].indexOf(kind));
  assert.deepEqual(rank, rank.toSorted((one, other) => one - other), "the urgent and the uncertain first");
  assert.equal(await page.locator("#failed li").count(), 1);
  assert.match(await text(page, "#failed li"), /: .{5}/);
  const at = () => page.$$eval("#worklist button", (all) => all.findIndex((one) => one.ariaCurrent === "true"));
  assert.equal(await at(), 0, "the first is chosen");
  await page.keyboard.press("j");
  assert.equal(await at(), 1);
  await page.keyboard.press("k");
  assert.equal(await at(), 0);
}

async function viewer(page) {
  await page.waitForFunction(() => document.querySelector("#window").textContent);
  for (const [key, pattern] of [["+", /zoom 1\.[23]/], ["]", /level 134/], ["}", /window 266/]]) {
    await page.keyboard.press(key);
    assert.match(await text(page, "#window"), pattern, key);
  }
  let before = await picture(page);
  await page.keyboard.press("i");
  assert.equal(await page.getAttribute("#invert", "aria-pressed"), "true");
  await painted(page, before);
  await page.keyboard.press("r");
  assert.match(await text(page, "#window"), /window 256 {2}level 128 {2}zoom 1\.0/);
  const box = await page.locator("#canvas").boundingBox();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  await page.mouse.move(x, y);
  await page.mouse.down();
  await page.mouse.move(x + 40, y + 20);
  await page.mouse.up();
  assert.match(await text(page, "#window"), /window 296 {2}level 118/);
  await page.mouse.wheel(0, -100);
  await page.waitForFunction(() => /zoom 1\.1/.test(document.querySelector("#window").textContent));
  before = await picture(page);
  await page.focus("#canvas");
  await page.keyboard.press("ArrowLeft");
  await painted(page, before);
  await page.keyboard.press("r");
  before = await picture(page);
  await page.keyboard.press("h");
  await page.waitForFunction(() => /Warm|withheld|no heat map/.test(document.querySelector("#heat-note").textContent));
  if (/Warm/.test(await text(page, "#heat-note"))) assert.notEqual(await picture(page), before, "a heat map");
}

async function prevalence(page) {
  const [decision, shown] = [await text(page, "#decision"), await text(page, "#probability")];
  await page.fill("#prevalence", "0.2");
  await page.keyboard.press("Tab");
  await page.waitForFunction(() => /whom 0\.2 in 100/.test(document.querySelector("#words").textContent));
  assert.notEqual(await text(page, "#probability"), shown);
  assert.equal(await text(page, "#decision"), decision);
  assert.match(await text(page, "#evidence"), /patients/);
  await page.fill("#prevalence", "");
  await page.keyboard.press("Tab");
  await page.waitForFunction((old) => document.querySelector("#probability").textContent === old, shown);
}

async function opinions(page) {
  const { y, height } = await page.locator("#opinion").boundingBox();
  assert.ok(y + height < page.viewportSize().height, "film, answer and opinion are seen at once");
  await page.keyboard.press("n");
  await page.keyboard.press("Escape");
  await page.keyboard.press("d");
  await page.waitForFunction(() => document.querySelector("#opinion-state").textContent === "Kept on the server.");
  await page.keyboard.press("n");
  await page.keyboard.type('=1+1, "rotated"');
  await Promise.all([page.waitForResponse(/feedback/), page.keyboard.press("Enter")]);
  assert.equal(await page.evaluate(() => document.activeElement.id), "", "the keys of the film are back");
  assert.equal(await page.getAttribute("[data-opinion=disagree]", "aria-pressed"), "true");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  await download.saveAs(path.join(output, "labels.csv"));
}

async function keyboardAlone(page) {
  const reached = new Set();
  for (let count = 0; count < 60; count += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.dataset.opinion));
  }
  for (const id of ["prevalence", "theme", "files", "folder", "canvas", "heat", "opacity", "agree", "note", "download"]) {
    assert.ok(reached.has(id), `Tab does not reach ${id}`);
  }
}

const brightness = (page) => page.evaluate(() => {
  const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
  return (red + green + blue) / 3;
});

const dark = await open(1400, "dark");
assert.ok(await brightness(dark) < 60, "dark");
await accessible(dark, "empty page");
await drop(dark);
await worklist(dark);
await viewer(dark);
await dark.screenshot({ path: path.join(output, "dark.png") });
await prevalence(dark);
await opinions(dark);
await keyboardAlone(dark);
await accessible(dark, "dark");
await dark.evaluate(() => document.activeElement.blur());
await dark.keyboard.press("?");
await dark.waitForSelector("#help[open]");
await accessible(dark, "keys");

for (const [name, width] of [["light", 1400], ["narrow", 400]]) {
  const page = await open(width, "light");
  assert.ok(await brightness(page) > 200, "light");
  await page.setInputFiles("#folder", folder);
  await allRead(page);
  await page.waitForFunction(() => document.querySelector("#window").textContent);
  await page.keyboard.press("h");
  await page.waitForFunction(() => /Warm|withheld|no heat map/.test(document.querySelector("#heat-note").textContent));
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= width, `${name}: ${wide} pixels wide`);
  await page.screenshot({ path: path.join(output, `${name}.png`), fullPage: name === "narrow" });
  await accessible(page, name);
}
await browser.close();
assert.deepEqual(wrong, []);
