"use strict";
// Everything that comes from a text or an answer is set as text, never as HTML.

const find = (id) => document.getElementById(id);
const EDGES = [0.6, 0.75, 0.9];
let chosen = null; // the picture: a Blob with a name
let shown = ""; // its object URL

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

const complain = (message) => {
  say("");
  find("problem").textContent = message;
  find("problem").hidden = !message;
};

const choose = (blob, name) => {
  chosen = { blob, name };
  const held = new DataTransfer(); // so that the field names the picture, wherever it came from
  held.items.add(new File([blob], name, { type: blob.type }));
  find("file").files = held.files;
  find("result").hidden = true;
  complain("");
};

const form = () => {
  const data = new FormData();
  data.append("image", chosen.blob, chosen.name);
  data.append("text", find("text").value);
  return data;
};

const judge = async () => {
  if (!chosen) { complain("Choose a picture first."); find("file").focus(); return; }
  if (!find("text").value.trim()) { complain("Type the text that goes with the picture."); find("text").focus(); return; }
  complain("");
  say("Judging …");
  find("judge").disabled = true;
  try {
    const key = find("key").value;
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const asked = { ...chosen, text: find("text").value };
    const answer = await fetch("v1/detect", { method: "POST", body: form(), headers });
    const told = await answer.json().catch(() => null); // what stands before the API may refuse in its own words
    if (answer.ok && told) await show(told, asked);
    else complain(explain(answer, told?.error?.message ?? `it answered ${answer.status}`));
  } catch {
    complain("The server does not answer. Is it running?");
  } finally {
    find("judge").disabled = false;
  }
};

const explain = (answer, reason) => {
  if (answer.status === 401) return "This server needs a key: open “API key” and enter yours.";
  if (answer.status === 429 || answer.status === 503) {
    const wait = answer.headers.get("Retry-After") || "a few";
    return `The server is busy (${reason}). Try again in ${wait} s.`;
  }
  return `Not judged: ${reason}`;
};

const MEANINGS = {
  manipulated: "at or above the threshold from which this server calls a pair manipulated.",
  review: "high enough for a person to look, not high enough to call it manipulated.",
  authentic: "below the threshold. That is no proof that the pair is genuine.",
};

const show = async (told, asked) => {
  find("verdict").textContent = told.verdict;
  find("verdict").className = told.verdict;
  const score = told.score.toFixed(2);
  find("meaning").textContent =
    `Score ${score}: the model's probability that the pair was manipulated. It is ${MEANINGS[told.verdict]}`;
  showPicture(told, asked.blob);
  showText(told.evidence.words, asked.text);
  showTypes(told.types);
  find("warnings").replaceChildren();
  for (const warning of told.warnings) make("li", warning, find("warnings"));
  find("about").textContent =
    `Model ${told.model_id}, policy ${told.policy_id}, ${Math.round(told.timings.total)} ms, request ${told.id}`;
  find("result").hidden = false;
  say(`${told.verdict}, score ${score}`, { heard: true });
  find("result").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  find("result").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
};

const showPicture = (told, blob) => {
  URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(blob);
  const { box, box_px: pixels } = told.evidence;
  find("picture").src = shown;
  find("picture").alt = "The picture that was judged";
  find("box").hidden = !box;
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
  const marked = find("marked");
  marked.replaceChildren();
  let cursor = 0;
  for (const word of words) {
    marked.append(characters.slice(cursor, word.start).join(""));
    const mark = make("mark", characters.slice(word.start, word.end).join(""), marked);
    mark.dataset.level = String(1 + EDGES.filter((edge) => word.score >= edge).length);
    mark.title = `manipulated: ${word.score.toFixed(2)}`;
    cursor = word.end;
  }
  marked.append(characters.slice(cursor).join(""));
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
    if (type.score !== null) make("meter", "", cell).value = type.score;
    cell.append(type.score === null ? "not judged" : type.score.toFixed(2));
    make("td", type.flagged ? "yes" : "no", row);
  }
};

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = () => {
  const name = chosen ? chosen.name : "photo.jpg";
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

const loadExample = async (example) => {
  const answer = await fetch(`page/${example.image}`);
  choose(await answer.blob(), example.image);
  find("text").value = example.text;
  await judge();
};

const listExamples = async () => {
  const answer = await fetch("page/examples.json");
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
  if (file) choose(file, file.name || "pasted.png");
};

find("file").addEventListener("change", (event) => take(event.target.files));
find("form").addEventListener("submit", (event) => { event.preventDefault(); judge(); });
find("curl").addEventListener("click", copy);
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
listExamples();
