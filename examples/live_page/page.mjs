import * as ort from "./runtime/ort.wasm.min.mjs";
import {SIDE, levels} from "./drawing.mjs";

const PRECISIONS = ["float32", "int8"];
const CLASSES = 10;
const INK_WIDTH = 34; // of a pad of 320 pixels: about 3 of the 32 of a scan

const element = (id) => document.getElementById(id);
const pad = element("pad");
const ink = pad.getContext("2d", {willReadFrequently: true});
const inkColour = () => getComputedStyle(pad).color; // a canvas does not resolve light-dark()

function cell(text, kind = "td") {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

// One row per class, with a bar for each file.
function buildRows() {
  for (let digit = 0; digit < CLASSES; digit++) {
    const row = element("classes").insertRow();
    const head = cell(digit, "th");
    head.scope = "row";
    row.append(head);
    for (const precision of PRECISIONS) {
      const shown = row.insertCell();
      shown.dataset.precision = precision;
      shown.append(Object.assign(document.createElement("i"), {className: "bar"}));
      shown.append(document.createElement("span"));
    }
  }
}

function showProbabilities(precision, probabilities) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  document.querySelectorAll(`td[data-precision="${precision}"]`).forEach((shown, digit) => {
    shown.querySelector(".bar").style.width = `${100 * probabilities[digit]}%`;
    shown.querySelector("span").textContent = `${(100 * probabilities[digit]).toFixed(1)} %`;
    shown.classList.toggle("best", digit === best);
  });
  return best;
}

function showSeen(counts) {
  const seen = element("seen").getContext("2d");
  seen.clearRect(0, 0, SIDE, SIDE);
  counts.forEach((count, index) => {
    seen.globalAlpha = count / 16;
    seen.fillStyle = inkColour();
    seen.fillRect(index % SIDE, Math.floor(index / SIDE), 1, 1);
  });
}

async function infer(session, image) {
  const [name] = session.inputNames;
  const start = performance.now();
  const results = await session.run({[name]: new ort.Tensor("float32", image, [1, SIDE, SIDE, 1])});
  const elapsed = performance.now() - start;
  return {probabilities: Array.from(results[session.outputNames[0]].data), elapsed};
}

let queue = Promise.resolve(); // one inference at a time: a session is not reentrant

function recognize(sessions, counts) {
  queue = queue.then(async () => {
    showSeen(counts);
    const image = Float32Array.from(counts, (count) => count / 16);
    const given = {};
    for (const precision of PRECISIONS) given[precision] = await infer(sessions[precision], image);
    const [float32, int8] = PRECISIONS.map((name) => given[name].probabilities);
    const bests = PRECISIONS.map((name) => showProbabilities(name, given[name].probabilities));
    const apart = Math.max(...float32.map((value, digit) => Math.abs(value - int8[digit])));
    element("difference").textContent =
      (bests[0] === bests[1] ? `Both read a ${bests[0]}` : `float32 reads a ${bests[0]}, int8 a ${bests[1]}`) +
      `; their probabilities differ by at most ${(100 * apart).toFixed(2)} points.`;
    const times = PRECISIONS.map((name) => cell(`${given[name].elapsed.toFixed(1)} ms`));
    const row = document.createElement("tr");
    row.append(cell("time", "th"), ...times);
    element("summary").replaceChildren(row);
    globalThis.renormliteShown = {counts, ...given}; // read by the page's test
  });
  return queue;
}

function clear() {
  ink.clearRect(0, 0, pad.width, pad.height);
  element("difference").textContent = "Draw a digit.";
  element("summary").replaceChildren();
  showSeen(new Array(SIDE * SIDE).fill(0));
  PRECISIONS.forEach((name) => showProbabilities(name, new Array(CLASSES).fill(0)));
  document.querySelectorAll(".best").forEach((shown) => shown.classList.remove("best"));
}

function drawLevels(counts) {
  const size = pad.width / SIDE;
  counts.forEach((count, index) => {
    ink.globalAlpha = count / 16;
    ink.fillStyle = inkColour();
    ink.fillRect((index % SIDE) * size, Math.floor(index / SIDE) * size, size, size);
  });
  ink.globalAlpha = 1;
}

function listen(sessions, digits) {
  let last = null;
  let shown = 0;
  let showsScan = false;
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    const scale = pad.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const stroke = (from, to) => {
    Object.assign(ink, {lineWidth: INK_WIDTH, lineCap: "round", strokeStyle: inkColour()});
    ink.beginPath();
    ink.moveTo(...from);
    ink.lineTo(...to);
    ink.stroke();
    const counts = levels(ink.getImageData(0, 0, pad.width, pad.height));
    if (counts !== null) recognize(sessions, counts);
  };
  pad.addEventListener("pointerdown", (event) => {
    if (showsScan) clear();
    showsScan = false;
    pad.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(last, last);
  });
  pad.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const to = at(event);
    stroke(last, to);
    last = to;
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (last = null));
  element("clear").addEventListener("click", () => queue.then(clear));
  element("next").addEventListener("click", async () => {
    const {levels: counts} = digits[shown++ % digits.length];
    await queue;
    clear();
    drawLevels(counts);
    showsScan = true;
    await recognize(sessions, counts);
  });
}

function showVerdict({passed, samples, files}) {
  const word = Object.assign(cell(passed ? "PASS" : "FAIL", "strong"), {className: passed ? "pass" : "fail"});
  const head = cell("", "h2");
  head.append("Parity: ", word);
  const list = document.createElement("ul");
  for (const file of files) {
    list.append(
      cell(
        `${file.file} on ${file.target}: ${file.passed ? "pass" : "fail"}; ${file.snr_db} dB from the ` +
          `trained model in float64; ${file.accuracy} % of the test digits right ` +
          `(trained model: ${file.trained_accuracy} %)`,
        "li",
      ),
    );
  }
  const link = Object.assign(cell("The whole report", "a"), {href: "report.html"});
  const note = cell(`Checked on ${samples} samples before this page was written. `, "p");
  note.append(link);
  element("verdict").append(head, list, note);
}

async function main() {
  buildRows();
  const {verdict, digits} = await (await fetch("page.json")).json();
  showVerdict(verdict);
  ort.env.wasm.numThreads = 1; // threads would demand a cross-origin isolated page
  ort.env.wasm.wasmPaths = new URL("runtime/", document.baseURI).href;
  const sessions = {};
  for (const {precision, file} of verdict.files) {
    sessions[precision] ??= await ort.InferenceSession.create(`digits/${file}`, {executionProviders: ["wasm"]});
  }
  listen(sessions, digits);
  clear();
}

main().catch((error) => {
  element("difference").textContent = `The network cannot be loaded: ${error.message}`;
});
