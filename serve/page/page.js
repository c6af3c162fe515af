"use strict";
// Texts and responses are inserted as text, never as HTML.

const find = (id) => document.getElementById(id);
const LEVELS = [0.6, 0.75, 0.9]; // word scores at which the highlight becomes stronger
// Browsers do not show other types, or show them differently from what the model sees: not rotated by their EXIF
// orientation, or with all frames instead of the first.
const SHOWN_AS_ANALYZED = ["image/jpeg", "image/png"];
let pending = null; // the AbortController of the request in progress
let shown = ""; // the object URL of the picture that was checked

// An error to show to the user, who may be able to correct it in the element `at`.
class Problem extends Error {
  constructor(message, at = null) {
    super(message);
    this.at = at;
  }
}

const make = (name, text, into) => {
  const element = document.createElement(name);
  element.textContent = text;
  into.append(element);
  return element;
};

// `hidden`: only screen readers announce it, because the page shows the same in another way.
const setStatus = (message, { hidden = false } = {}) => {
  find("status").textContent = message;
  find("status").classList.toggle("visually-hidden", hidden);
};

const showProblem = (message, at = null) => {
  setStatus("");
  find("problem").textContent = message;
  find("problem").hidden = !message;
  if (!message) return;
  find("problem").scrollIntoView({ block: "nearest" });
  const closed = at?.closest("details:not([open])");
  if (closed) closed.open = true;
  at?.focus();
};

// The file field alone holds the picture, so the file that it names is the one that is checked.
const chosenFile = () => find("file").files[0];

const setFile = (blob, name) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], name, { type: blob.type }));
  find("file").files = transfer.files;
};

const endRequest = () => {
  pending = null;
  find("check").removeAttribute("aria-disabled");
};

// Drop the result that is shown and the request in progress: they are about another pair.
const reset = () => {
  pending?.abort();
  endRequest();
  find("result").hidden = true;
  find("copied").textContent = "";
  showProblem("");
};

// Run work that calls the server, and show its error. A later call cancels an earlier one.
const attempt = async (work) => {
  reset();
  const own = new AbortController();
  pending = own;
  find("check").setAttribute("aria-disabled", "true"); // `disabled` would take the focus from the button
  try {
    await work(own.signal);
  } catch (error) {
    if (own.signal.aborted) return;
    if (error instanceof Problem) showProblem(error.message, error.at);
    else showProblem(`The response cannot be shown: ${error.message}`);
  } finally {
    if (pending === own) endRequest();
  }
};

const request = async (address, options) => {
  try {
    return await fetch(address, options);
  } catch {
    throw new Problem("The server does not answer. Is it running?");
  }
};

// A form is always sent with CRLF line breaks, and offsets count in the text as it is sent.
const withCrlf = (text) => text.replaceAll("\n", "\r\n");

const form = (picture, text) => {
  const data = new FormData();
  data.append("image", picture, picture.name);
  data.append("text", text);
  return data;
};

const check = async (signal) => {
  const picture = chosenFile();
  const text = withCrlf(find("text").value);
  if (!picture) throw new Problem("Choose a picture first.", find("file"));
  if (!text.trim()) throw new Problem("Type the text that goes with the picture.", find("text"));
  setStatus("Checking …");
  if (!await isReadable(picture)) {
    throw new Problem("The picture was changed or moved since you chose it. Choose it again.", find("file"));
  }
  const address = await isShownAsAnalyzed(picture) ? "v1/detect" : "v1/detect?evidence=image";
  const key = find("key").value;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await request(address, { method: "POST", body: form(picture, text), headers, signal });
  const content = await response.json().catch(() => null); // a proxy before the API may refuse without JSON
  if (!response.ok || !content) throw explain(response, content?.error?.message);
  fill(content, picture, text);
  await find("picture").decode().catch(() => null); // scrolling needs its height
  signal.throwIfAborted();
  reveal(content);
};

const isReadable = (picture) => picture.slice(0, 1).arrayBuffer().then(() => true, () => false);

const isShownAsAnalyzed = async (picture) => {
  if (!SHOWN_AS_ANALYZED.includes(picture.type)) return false;
  const address = URL.createObjectURL(picture);
  const image = new Image();
  const isShown = await new Promise((resolve) => {
    image.addEventListener("load", () => resolve(true));
    image.addEventListener("error", () => resolve(false));
    image.src = address;
  });
  URL.revokeObjectURL(address);
  return isShown;
};

const explain = (response, reason = `it answered ${response.status}`) => {
  if (response.status === 401) return new Problem("This server needs a key: enter yours under “API key”.", find("key"));
  if (response.status === 429 || response.status === 503) {
    const wait = response.headers.get("Retry-After") || "a few";
    return new Problem(`The server is busy (${reason}). Try again in ${wait} s.`);
  }
  return new Problem(`Not checked: ${reason}`);
};

const MEANINGS = {
  manipulated: "at or above the threshold at which this server calls a pair manipulated.",
  review: "high enough for a person to review the pair, but not high enough to call it manipulated.",
  authentic: "below the threshold. This does not prove that the pair is genuine.",
};

/** A probability as a person reads it: below 1 never rounded up to 1. */
const scoreText = (score) => (score < 1 && score.toFixed(2) === "1.00" ? ">0.99" : score.toFixed(2));

/** The model's scores mean nothing for a pair that it did not judge, so they are not shown. */
const isJudged = ({ verdict }) => verdict !== "unfamiliar";

const fill = (detection, picture, text) => {
  const { verdict, score, evidence } = detection;
  const note = evidence.note ?? ""; // processes of an earlier version, which answer during an update, send none
  find("verdict").textContent = isJudged(detection) ? verdict : "unfamiliar, not judged";
  find("verdict").className = verdict;
  find("meaning").textContent = isJudged(detection)
    ? `Score ${scoreText(score)}: the model's probability that the pair was manipulated. It is ${MEANINGS[verdict]}`
    : `${note} It may be genuine, and it may be manipulated.`;
  find("unsupported").textContent = isJudged(detection) ? note : "";
  find("limits").textContent = detection.limits ?? "";
  find("scores").hidden = !isJudged(detection);
  showPicture(detection, picture);
  showText(detection, text);
  showTypes(detection.types);
  find("warnings").replaceChildren();
  for (const warning of detection.warnings) make("li", warning, find("warnings"));
  const { model_id: model, policy_id: policy, timings, id } = detection;
  find("about").textContent = `Model ${model}, policy ${policy}, ${Math.round(timings.total)} ms, request ${id}`;
};

const reveal = (detection) => {
  find("result").hidden = false;
  const heard = isJudged(detection) ? `, score ${scoreText(detection.score)}` : "";
  setStatus(`${find("verdict").textContent}${heard}`, { hidden: true });
  find("result").focus({ preventScroll: true });
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  find("result").scrollIntoView({ behavior: isCalm ? "auto" : "smooth", block: "start" });
};

const showPicture = (detection, picture) => {
  const { evidence, input } = detection;
  URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(picture);
  const { box, box_px: pixels, image: drawn } = evidence; // `drawn` comes from the server and has the box on it
  find("picture").src = drawn ?? shown;
  find("picture").alt = "The picture that was checked";
  find("box").hidden = !box || Boolean(drawn);
  if (!box) { find("where").textContent = isJudged(detection) ? "No face was flagged." : ""; return; }
  const style = find("box").style;
  style.left = `${100 * box.x0}%`;
  style.top = `${100 * box.y0}%`;
  style.width = `${100 * (box.x1 - box.x0)}%`;
  style.height = `${100 * (box.y1 - box.y0)}%`;
  const [x0, y0, x1, y1] = ["x0", "y0", "x1", "y1"].map((name) => Math.round(pixels[name]));
  find("where").textContent = `A face is flagged: x ${x0} to ${x1}, y ${y0} to ${y1}, ` +
    `of ${input.width} × ${input.height} pixels.`;
};

const showText = (detection, text) => {
  const { words } = detection.evidence;
  const characters = Array.from(text); // offsets count code points, not UTF-16 units
  const piece = (start, end) => characters.slice(start, end).join("").replaceAll("\r\n", "\n");
  const marked = find("marked");
  marked.replaceChildren();
  let cursor = 0;
  for (const word of words) {
    marked.append(piece(cursor, word.start));
    const mark = make("mark", piece(word.start, word.end), marked);
    mark.dataset.level = String(1 + LEVELS.filter((level) => word.score >= level).length);
    mark.title = `manipulated: ${scoreText(word.score)}`;
    cursor = word.end;
  }
  marked.append(piece(cursor));
  const listed = words.map((word) => `${word.word} ${scoreText(word.score)}`).join(", ");
  const none = isJudged(detection) ? "No word was flagged." : "";
  find("words").textContent = words.length ? `Flagged words: ${listed}` : none;
};

const showTypes = (types) => {
  find("types").replaceChildren();
  for (const [name, type] of Object.entries(types)) {
    const row = make("tr", "", find("types"));
    row.className = type.flagged ? "flagged" : "";
    make("th", name.replace("_", " "), row).scope = "row";
    const cell = make("td", "", row);
    if (type.score !== null) {
      const meter = make("meter", "", cell);
      meter.value = type.score;
      meter.ariaHidden = "true"; // the number beside it says the same
    }
    cell.append(type.score === null ? "not scored" : scoreText(type.score));
    make("td", type.flagged ? "yes" : "no", row);
  }
};

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = () => {
  const name = chosenFile()?.name ?? "photo.jpg";
  const field = `image=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const parts = ["curl", quoted(new URL("v1/detect", location.href).href)];
  if (find("key").value) parts.push('-H "Authorization: Bearer $ASAP_KEY"'); // never the key itself
  parts.push("-F", quoted(field), "--form-string", quoted(`text=${find("text").value}`));
  return parts.join(" ");
};

const copy = async () => {
  const command = curl();
  try {
    await navigator.clipboard.writeText(command);
    find("copied").textContent = "Copied.";
  } catch {
    find("copied").textContent = command;
  }
};

const loadExample = (example) => attempt(async (signal) => {
  const response = await request(`page/${example.image}`, { signal });
  if (!response.ok) throw explain(response);
  setFile(await response.blob(), example.image);
  find("text").value = example.text;
  await check(signal);
});

const listExamples = async () => {
  const response = await fetch("page/examples.json").catch(() => null);
  if (!response?.ok) { make("li", "The examples cannot be loaded now.", find("examples")); return; }
  for (const example of await response.json()) {
    const button = make("button", "", make("li", "", find("examples")));
    button.type = "button";
    const image = make("img", "", button);
    image.src = `page/${example.image}`;
    image.alt = "";
    make("span", example.text, button);
    button.addEventListener("click", () => loadExample(example));
  }
};

const takeFile = (files) => {
  const file = Array.from(files).find((candidate) => candidate.type.startsWith("image/")) || files[0];
  if (!file) return;
  reset();
  setFile(file, file.name || "pasted.png");
};

const paste = (event) => {
  const { types, files } = event.clipboardData;
  // Office programs copy a picture of a text along with the text. In the text field, the text is meant.
  const isText = event.target === find("text") && types.includes("text/plain") && types.includes("text/html");
  if (isText || !files.length) return;
  event.preventDefault(); // otherwise the browser would insert the file's name
  takeFile(files);
};

find("file").addEventListener("change", reset);
find("text").addEventListener("input", () => { find("copied").textContent = ""; });
find("form").addEventListener("submit", (event) => { event.preventDefault(); if (!pending) attempt(check); });
find("curl").addEventListener("click", copy);
document.addEventListener("paste", paste);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return; // a dropped text goes into the field under it
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFile(event.dataTransfer.files);
  });
}
listExamples();
