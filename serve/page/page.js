"use strict";
// Texts and responses are inserted as text, never as HTML.

const find = (id) => document.getElementById(id);
const LEVELS = [0.6, 0.75, 0.9]; // word scores at which the highlight becomes stronger
// Browsers do not show other types, or show them differently from what the model sees: not rotated by their EXIF
// orientation, or with all frames instead of the first.
const SHOWN_AS_ANALYZED = ["image/jpeg", "image/png"];
let pending = null; // the AbortController of the request in progress
let shown = ""; // the object URL of the picture that was checked
let previewed = ""; // the object URL of the picture that is chosen
let limits = null; // what /v1/limits says; null until it has answered
let found = null; // the response that is shown

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
  showPreview();
};

// A picture that the browser cannot show has no preview. The server may be able to read it all the same.
const showPreview = () => {
  const file = chosenFile();
  const preview = find("preview");
  preview.hidden = true;
  preview.removeAttribute("src");
  URL.revokeObjectURL(previewed);
  if (!file) return;
  find("address").value = "";
  previewed = URL.createObjectURL(file);
  preview.src = previewed;
};

const megabytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(3))} MiB`;

// The limits are for callers with a key only, so they are asked for anew once there is one.
const loadLimits = async () => {
  const response = await fetch("v1/limits", { headers: keyHeaders() }).catch(() => null);
  if (!response?.ok) return;
  limits = await response.json();
  find("formats").textContent = `${limits.image_formats.join(", ")}; at most ${megabytes(limits.max_image_bytes)} and ` +
    `${Number((limits.max_image_pixels / 1e6).toPrecision(3))} megapixels.`;
  find("text-help").textContent = `At most ${limits.max_text_chars.toLocaleString("en")} characters.`;
  find("remote").hidden = !limits.uri_prefixes.length;
  find("prefixes").textContent = `The server fetches pictures from ${limits.uri_prefixes.join(", ")}.`;
};

const keyHeaders = () => (find("key").value ? { Authorization: `Bearer ${find("key").value}` } : {});

const endRequest = () => {
  pending = null;
  find("check").removeAttribute("aria-disabled");
};

// Drop the result that is shown and the request in progress: they are about another pair.
const reset = () => {
  pending?.abort();
  endRequest();
  found = null;
  find("result").hidden = true;
  find("copied").textContent = "";
  find("linked").textContent = "";
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
  const address = picture ? "" : find("address").value.trim();
  const text = withCrlf(find("text").value);
  if (!picture && !address) throw new Problem("Choose a picture first.", find("file"));
  if (!text.trim()) throw new Problem("Type the text that goes with the picture.", find("text"));
  setStatus("Checking …");
  const response = await (picture ? sendPicture(picture, text, signal) : sendAddress(address, text, signal));
  const content = await response.json().catch(() => null); // a proxy before the API may refuse without JSON
  if (!response.ok || !content) throw explain(response, content?.error?.message);
  fill(content, picture, text);
  await find("picture").decode().catch(() => null); // scrolling needs its height
  signal.throwIfAborted();
  reveal(content);
};

const sendPicture = async (picture, text, signal) => {
  if (limits && picture.size > limits.max_image_bytes) {
    const size = (Math.ceil((100 * picture.size) / 2 ** 20) / 100).toLocaleString("en"); // never shown as the limit
    const sizes = `${size} MiB, and the limit is ${megabytes(limits.max_image_bytes)}`;
    throw new Problem(`The picture has ${sizes}. Choose a smaller one.`, find("file"));
  }
  if (!await isReadable(picture)) {
    throw new Problem("The picture was changed or moved since you chose it. Choose it again.", find("file"));
  }
  const route = await isShownAsAnalyzed(picture) ? "v1/detect" : "v1/detect?evidence=image";
  return request(route, { method: "POST", body: form(picture, text), headers: keyHeaders(), signal });
};

// The page may not load pictures of other hosts, so the server sends the one that it has fetched.
const sendAddress = (uri, text, signal) => request("v1/detect?evidence=image", {
  method: "POST",
  body: JSON.stringify({ uri, text }),
  headers: { ...keyHeaders(), "Content-Type": "application/json" },
  signal,
});

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
  if (response.status === 401) {
    const message = find("key").value ? `The key is refused: ${reason}` : "This server needs a key: enter yours under “API key”.";
    return new Problem(message, find("key"));
  }
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
  found = detection;
  find("link").hidden = Boolean(picture);
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
  shown = picture ? URL.createObjectURL(picture) : "";
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
  find("legend").hidden = !words.length;
  find("words").textContent = words.length ? `Flagged words: ${listed}` : none;
};

const TYPES = {
  face_swap: "another person's face was put into the picture",
  face_attribute: "the face is the same person's, with another expression",
  text_swap: "the text belongs to another picture",
  text_attribute: "words were turned into their opposite",
};

const showTypes = (types) => {
  find("types").replaceChildren();
  for (const [name, type] of Object.entries(types)) {
    const row = make("tr", "", find("types"));
    row.className = type.flagged ? "flagged" : "";
    const heading = make("th", name.replace("_", " "), row);
    heading.scope = "row";
    make("span", TYPES[name] ?? "", heading).className = "note";
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
  const uri = chosenFile() ? "" : find("address").value.trim();
  const name = chosenFile()?.name ?? "photo.jpg";
  const field = `image=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const parts = ["curl", quoted(new URL("v1/detect", location.href).href)];
  if (find("key").value) parts.push('-H "Authorization: Bearer $ASAP_KEY"'); // never the key itself
  if (uri) parts.push('-H "Content-Type: application/json" -d', quoted(JSON.stringify({ uri, text: find("text").value })));
  else parts.push("-F", quoted(field), "--form-string", quoted(`text=${find("text").value}`));
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

const save = (blob, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
};

// A picture that the server has drawn has its box already.
const savePicture = () => {
  const picture = find("picture");
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const { box_px: box, image: drawn } = found.evidence;
  if (box && !drawn) {
    const width = Math.max(2, Math.round(Math.max(canvas.width, canvas.height) / 200));
    for (const [color, size] of [["#ffffff", 2 * width], ["#c82c1c", width]]) {
      context.strokeStyle = color;
      context.lineWidth = size;
      context.strokeRect(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0);
    }
  }
  canvas.toBlob((blob) => save(blob, `${found.verdict}-${found.id}.png`), "image/png");
};

const saveJson = () => {
  const { image, ...evidence } = found.evidence;
  const blob = new Blob([JSON.stringify({ ...found, evidence }, null, 2)], { type: "application/json" });
  save(blob, `${found.verdict}-${found.id}.json`);
};

// Behind `#`, so that neither server nor proxy logs the text.
const copyLink = async () => {
  const address = new URL(location.href);
  address.hash = new URLSearchParams({ address: find("address").value.trim(), text: find("text").value });
  try {
    await navigator.clipboard.writeText(address.href);
    find("linked").textContent = "Copied.";
  } catch {
    find("linked").textContent = address.href;
  }
};

// A link fills the form. Nothing is sent before its reader asks for it.
const openLink = () => {
  const fields = new URLSearchParams(location.hash.slice(1));
  if (!fields.get("address")) return;
  find("address").value = fields.get("address");
  find("text").value = fields.get("text") ?? "";
};

const startAnew = () => {
  reset();
  find("form").reset();
  showPreview();
  find("form").scrollIntoView({ block: "start" });
  find("file").focus({ preventScroll: true });
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
    const label = make("span", "", button);
    make("strong", example.shows, label);
    make("span", example.text, label);
    button.addEventListener("click", () => loadExample(example));
  }
};

const takeFile = (files) => {
  const file = Array.from(files).find((candidate) => candidate.type.startsWith("image/")) || files[0];
  if (!file) return;
  reset();
  setFile(file, file.name || "pasted.png");
};

const takeAddress = (dropped) => {
  const address = dropped.split(/\r?\n/).find((line) => line && !line.startsWith("#"));
  if (!address) return;
  reset();
  if (!limits) {
    const first = "The server has not said from which addresses it fetches pictures.";
    showProblem(`${first} If it needs a key, enter yours under “API key”. Then drop the address again.`, find("key"));
    return;
  }
  if (!limits.uri_prefixes.some((prefix) => address.startsWith(prefix))) {
    showProblem("The server does not fetch pictures from this address. Save the picture, and choose its file.", find("file"));
    return;
  }
  find("file").value = "";
  showPreview();
  find("address").value = address;
};

const paste = (event) => {
  const { types, files } = event.clipboardData;
  // Office programs copy a picture of a text along with the text. In the text field, the text is meant.
  const isText = event.target === find("text") && types.includes("text/plain") && types.includes("text/html");
  if (isText || !files.length) return;
  event.preventDefault(); // otherwise the browser would insert the file's name
  takeFile(files);
};

find("file").addEventListener("change", () => { reset(); showPreview(); });
// A verdict is about the pair that was sent, so it goes when the pair changes.
find("text").addEventListener("input", reset);
find("address").addEventListener("input", () => { reset(); find("file").value = ""; showPreview(); });
find("preview").addEventListener("load", () => { find("preview").hidden = false; });
find("key").addEventListener("change", loadLimits);
find("another").addEventListener("click", startAnew);
find("save-picture").addEventListener("click", savePicture);
find("save-json").addEventListener("click", saveJson);
find("link").addEventListener("click", copyLink);
find("print").addEventListener("click", () => print());
find("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
});
find("form").addEventListener("submit", (event) => { event.preventDefault(); if (!pending) attempt(check); });
find("curl").addEventListener("click", copy);
document.addEventListener("paste", paste);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const isField = event.target.matches?.("#text, #address");
    if (!event.dataTransfer.types.includes("Files")) {
      // A dropped text goes into the field under it. Elsewhere the browser would leave the page for an address.
      if (!isField) event.preventDefault();
      if (!isField && kind === "drop") takeAddress(event.dataTransfer.getData("text/uri-list"));
      return;
    }
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFile(event.dataTransfer.files);
  });
}
openLink();
loadLimits();
listExamples();
