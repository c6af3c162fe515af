"use strict";
// Everything that comes from a text or an answer is set as text, never as HTML.

const find = (id) => document.getElementById(id);
const EDGES = [0.6, 0.75, 0.9];
// Of other kinds browsers show nothing, or not as it was judged: unturned, or all frames and not the first.
const SHOWN_AS_JUDGED = ["image/jpeg", "image/png"];
let asking = null; // an AbortController, while the server is asked
let shown = ""; // the object URL of the picture that was judged

// Told to the user, who may mend it `at` an element.
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

// `heard`: for a screen reader only, where the page shows the same in another way.
const say = (message, { heard = false } = {}) => {
  find("status").textContent = message;
  find("status").classList.toggle("heard", heard);
};

const complain = (message, at = null) => {
  say("");
  find("problem").textContent = message;
  find("problem").hidden = !message;
  if (!message) return;
  find("problem").scrollIntoView({ block: "nearest" });
  const closed = at?.closest("details:not([open])");
  if (closed) closed.open = true;
  at?.focus();
};

// The field is the only place that holds the picture: what it names is what is judged.
const chosen = () => find("file").files[0];

const hold = (blob, name) => {
  const held = new DataTransfer();
  held.items.add(new File([blob], name, { type: blob.type }));
  find("file").files = held.files;
};

const settle = () => {
  asking = null;
  find("judge").removeAttribute("aria-disabled");
};

// What is shown, or on its way, is about another pair.
const forget = () => {
  asking?.abort();
  settle();
  find("result").hidden = true;
  find("copied").textContent = "";
  complain("");
};

// Does what asks the server and tells what goes wrong. Of several the latest is heard.
const attempt = async (work) => {
  forget();
  const mine = new AbortController();
  asking = mine;
  find("judge").setAttribute("aria-disabled", "true"); // `disabled` would take the focus from who pressed it
  try {
    await work(mine.signal);
  } catch (error) {
    if (mine.signal.aborted) return;
    if (error instanceof Problem) complain(error.message, error.at);
    else complain(`The answer cannot be shown: ${error.message}`);
  } finally {
    if (asking === mine) settle();
  }
};

const request = async (address, options) => {
  try {
    return await fetch(address, options);
  } catch {
    throw new Problem("The server does not answer. Is it running?");
  }
};

// A form is sent with CRLF line breaks, whatever the text has: offsets count in the text as it is sent.
const asSent = (text) => text.replaceAll("\n", "\r\n");

const form = (picture, text) => {
  const data = new FormData();
  data.append("image", picture, picture.name);
  data.append("text", text);
  return data;
};

const ask = async (signal) => {
  const picture = chosen();
  const text = asSent(find("text").value);
  if (!picture) throw new Problem("Choose a picture first.", find("file"));
  if (!text.trim()) throw new Problem("Type the text that goes with the picture.", find("text"));
  say("Judging …");
  if (!await isReadable(picture)) {
    throw new Problem("The picture was changed or moved since you chose it. Choose it again.", find("file"));
  }
  const address = await isShownAsJudged(picture) ? "v1/detect" : "v1/detect?evidence=image";
  const key = find("key").value;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await request(address, { method: "POST", body: form(picture, text), headers, signal });
  const told = await answer.json().catch(() => null); // what stands before the API may refuse in its own words
  if (!answer.ok || !told) throw explain(answer, told?.error?.message);
  fill(told, { picture, text });
  await find("picture").decode().catch(() => null); // scrolling wants its height
  signal.throwIfAborted();
  reveal(told);
};

const isReadable = (picture) => picture.slice(0, 1).arrayBuffer().then(() => true, () => false);

const isShownAsJudged = async (picture) => {
  if (!SHOWN_AS_JUDGED.includes(picture.type)) return false;
  const address = URL.createObjectURL(picture);
  const image = new Image();
  const isShown = await new Promise((tell) => {
    image.addEventListener("load", () => tell(true));
    image.addEventListener("error", () => tell(false));
    image.src = address;
  });
  URL.revokeObjectURL(address);
  return isShown;
};

const explain = (answer, reason = `it answered ${answer.status}`) => {
  if (answer.status === 401) return new Problem("This server needs a key: enter yours under “API key”.", find("key"));
  if (answer.status === 429 || answer.status === 503) {
    const wait = answer.headers.get("Retry-After") || "a few";
    return new Problem(`The server is busy (${reason}). Try again in ${wait} s.`);
  }
  return new Problem(`Not judged: ${reason}`);
};

const MEANINGS = {
  manipulated: "at or above the threshold from which this server calls a pair manipulated.",
  review: "high enough for a person to look, not high enough to call it manipulated.",
  authentic: "below the threshold. That is no proof that the pair is genuine.",
};

const fill = (told, asked) => {
  find("verdict").textContent = told.verdict;
  find("verdict").className = told.verdict;
  find("meaning").textContent = `Score ${told.score.toFixed(2)}: the model's probability that the pair was ` +
    `manipulated. It is ${MEANINGS[told.verdict]}`;
  showPicture(told, asked.picture);
  showText(told.evidence.words, asked.text);
  showTypes(told.types);
  find("warnings").replaceChildren();
  for (const warning of told.warnings) make("li", warning, find("warnings"));
  find("about").textContent =
    `Model ${told.model_id}, policy ${told.policy_id}, ${Math.round(told.timings.total)} ms, request ${told.id}`;
};

const reveal = (told) => {
  find("result").hidden = false;
  say(`${told.verdict}, score ${told.score.toFixed(2)}`, { heard: true });
  find("result").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  find("result").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
};

const showPicture = (told, picture) => {
  URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(picture);
  const { box, box_px: pixels, image: drawn } = told.evidence; // drawn: by the server, with the box
  find("picture").src = drawn ?? shown;
  find("picture").alt = "The picture that was judged";
  find("box").hidden = !box || Boolean(drawn);
  if (!box) { find("where").textContent = "No face was flagged."; return; }
  const style = find("box").style;
  style.left = `${100 * box.x0}%`;
  style.top = `${100 * box.y0}%`;
  style.width = `${100 * (box.x1 - box.x0)}%`;
  style.height = `${100 * (box.y1 - box.y0)}%`;
  const at = ["x0", "y0", "x1", "y1"].map((name) => Math.round(pixels[name]));
  find("where").textContent = `A face is flagged: x ${at[0]} to ${at[2]}, y ${at[1]} to ${at[3]}, ` +
    `of ${told.input.width} × ${told.input.height} pixels.`;
};

const showText = (words, text) => {
  const characters = Array.from(text); // offsets count code points, not UTF-16 units
  const piece = (start, end) => characters.slice(start, end).join("").replaceAll("\r\n", "\n");
  const marked = find("marked");
  marked.replaceChildren();
  let cursor = 0;
  for (const word of words) {
    marked.append(piece(cursor, word.start));
    const mark = make("mark", piece(word.start, word.end), marked);
    mark.dataset.level = String(1 + EDGES.filter((edge) => word.score >= edge).length);
    mark.title = `manipulated: ${word.score.toFixed(2)}`;
    cursor = word.end;
  }
  marked.append(piece(cursor));
  const listed = words.map((word) => `${word.word} ${word.score.toFixed(2)}`).join(", ");
  find("words").textContent = words.length ? `Flagged words: ${listed}` : "No word was flagged.";
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
    cell.append(type.score === null ? "not judged" : type.score.toFixed(2));
    make("td", type.flagged ? "yes" : "no", row);
  }
};

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = () => {
  const name = chosen()?.name ?? "photo.jpg";
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
  const answer = await request(`page/${example.image}`, { signal });
  if (!answer.ok) throw explain(answer);
  hold(await answer.blob(), example.image);
  find("text").value = example.text;
  await ask(signal);
});

const listExamples = async () => {
  const answer = await fetch("page/examples.json").catch(() => null);
  if (!answer?.ok) { make("li", "They cannot be loaded now.", find("examples")); return; }
  for (const example of await answer.json()) {
    const button = make("button", "", make("li", "", find("examples")));
    button.type = "button";
    const image = make("img", "", button);
    image.src = `page/${example.image}`;
    image.alt = "";
    make("span", example.text, button);
    button.addEventListener("click", () => loadExample(example));
  }
};

const take = (files) => {
  const file = Array.from(files).find((one) => one.type.startsWith("image/")) || files[0];
  if (!file) return;
  forget();
  hold(file, file.name || "pasted.png");
};

const paste = (event) => {
  const { types, files } = event.clipboardData;
  // Office programs copy a text with its picture: into the field goes the text.
  const isText = event.target === find("text") && types.includes("text/plain") && types.includes("text/html");
  if (isText || !files.length) return;
  event.preventDefault(); // or the file's name would be typed
  take(files);
};

find("file").addEventListener("change", forget);
find("text").addEventListener("input", () => { find("copied").textContent = ""; });
find("form").addEventListener("submit", (event) => { event.preventDefault(); if (!asking) attempt(ask); });
find("curl").addEventListener("click", copy);
document.addEventListener("paste", paste);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return; // a text goes into the field that it is dropped on
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
listExamples();
