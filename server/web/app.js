// The page: a document, questions about it, and what the server says of itself. Text of users and of the model only ever
// becomes textContent.
import {apiError, getJson, postJson, setKey, streamChat} from "./api.js";
import {AnswerView} from "./answer.js";
import {EXAMPLES} from "./examples.js";
import {Graphs} from "./graphs.js";

const INSTRUCTION = "Answer the question from the document. Be short.";
const LARGEST_FILE = 8 << 20;
const $ = (id) => document.getElementById(id);

const page = {model: "", maxTokens: 0, history: [], running: null, keyRefused: false};

// ---- the server

function showState(state, text) {
  if ($("state").dataset.state === state && $("state-text").textContent === text) return;
  if ((state === "down") !== ($("state").dataset.state === "down")) $("announce").textContent = `The server is ${text}.`;
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}

async function learnModel() {
  try {
    const model = (await getJson("v1/models")).data[0];
    page.model = model.id;
    page.maxTokens = model.max_model_len;
    $("model").textContent = model.id;
    $("context").textContent = `${page.maxTokens.toLocaleString("en")} tokens of context`;
    document.title = `t6d, ${model.id}`;
    countTokens();
  } catch (error) {
    askForKey(error);
  }
}

// Once for each key: who closes the panel is not asked again.
function askForKey(error) {
  if (error.status !== 401 && error.status !== 403) return;
  page.keyRefused = $("key-panel").open = true;
  $("model").textContent = "an API key is needed";
}

const graphs = new Graphs({
  onState(up, text) {
    showState(up ? (page.running ? "busy" : "ready") : "down", up ? (page.running ? "answering" : "ready") : text);
    if (up && !page.model && !page.keyRefused) learnModel();
  },
});

// ---- the document

let counting = null;

// How much of the context the document takes, in the server's own tokens.
async function countTokens() {
  counting?.abort();
  const text = documentText();
  $("clear").hidden = text === "";
  $("document-size").removeAttribute("data-over");
  $("document-size").textContent = text === "" ? "" : `${text.length.toLocaleString("en")} characters`;
  if (text === "" || !page.model) return;
  counting = new AbortController();
  try {
    const {count} = await postJson("tokenize", {model: page.model, prompt: systemMessage()}, counting.signal);
    const over = page.maxTokens > 0 && count >= page.maxTokens;
    $("document-size").textContent = `${count.toLocaleString("en")} tokens${over ? `, the model takes ${page.maxTokens.toLocaleString("en")}` : ""}`;
    $("document-size").toggleAttribute("data-over", over);
  } catch { /* the number of characters stays */ }
}

let countSoon = 0;
function documentChanged() {
  clearTimeout(countSoon);
  countSoon = setTimeout(countTokens, 350);
  $("clear").hidden = $("document").value === "";
  $("show-me").hidden = $("document").value !== "";
}

function documentText() { return $("document").value.replace(/[\r\n]+$/, ""); }

function systemMessage() { return `${INSTRUCTION}\n\n${documentText()}`; }

function setDocument(text, questions = []) {
  $("document").value = text;
  $("document").scrollTop = 0;
  suggest(questions);
  documentChanged();
}

async function openFile(file) {
  if (!file) return;
  if (file.size > LARGEST_FILE) return newView(`Open ${file.name}`).fail("The file is too large", `It has ${file.size.toLocaleString("en")} bytes; ${LARGEST_FILE.toLocaleString("en")} are taken.`);
  setDocument(await file.text());
}

function suggest(questions) {
  const buttons = questions.map((question) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = question;
    button.addEventListener("click", () => { ask(question); button.remove(); $("suggestions").hidden = !$("suggestions").children.length; $("question").focus(); });
    return button;
  });
  $("suggestions").replaceChildren(...buttons);
  $("suggestions").hidden = buttons.length === 0;
}

function load(example) {
  forget();
  setDocument(example.text, example.questions);
  $("question").focus({preventScroll: true});
}

for (const example of EXAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = example.name;
  button.addEventListener("click", () => load(example));
  $("examples").append(button);
}

// ---- questions

function messagesFor(question) {
  const messages = documentText() === "" ? [] : [{role: "system", content: systemMessage()}];
  if ($("follow").checked) messages.push(...page.history);
  return [...messages, {role: "user", content: question}];
}

function newView(question) {
  $("empty").hidden = true;
  $("forget").hidden = false;
  const view = new AnswerView(question);
  $("answers").append(view.element);
  scrollDown();
  return view;
}

function scrollDown() {
  const box = $("scroll");
  if (box.scrollHeight > box.clientHeight) box.scrollTop = box.scrollHeight;
  else $("answers").lastElementChild?.lastElementChild.scrollIntoView({block: "nearest"});
}

function setRunning(running) {
  page.running = running;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  if ($("state").dataset.state !== "down") showState(running ? "busy" : "ready", running ? "answering" : "ready");
}

async function ask(typed) {
  const question = typed.trim();
  if (question === "" || page.running) return;
  const stopper = new AbortController();
  setRunning(stopper);
  const view = newView(question);
  graphs.soon();
  try {
    if (!page.model) await learnModel();
    const body = {model: page.model || undefined, messages: messagesFor(question), temperature: 0};
    await streamChat(body, stopper.signal, (event) => { view.show(event); scrollDown(); });
    page.history.push({role: "user", content: question}, {role: "assistant", content: view.text});
    $("announce").textContent = `Answer: ${view.text}. ${view.summary()}`;
  } catch (error) {
    if (stopper.signal.aborted) view.stopped();
    else view.fail(...apiError(error));
    askForKey(error);
  } finally {
    view.end();
    setRunning(null);
    graphs.soon();
    scrollDown();
  }
}

function forget() {
  page.running?.abort();
  page.history = [];
  $("answers").replaceChildren();
  $("empty").hidden = false;
  $("forget").hidden = true;
}

// ---- events

function fitQuestion() {
  $("question").rows = Math.min(6, $("question").value.split("\n").length);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.running || $("question").value.trim() === "") return;
  ask($("question").value);
  $("question").value = "";
  fitQuestion();
});
$("question").addEventListener("input", fitQuestion);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if ($("key-panel").open) { $("key-panel").open = false; $("key-panel").querySelector("summary").focus(); }
  else page.running?.abort();
});
$("show-me").addEventListener("click", () => load(EXAMPLES[1]));
$("stop").addEventListener("click", () => { page.running?.abort(); $("question").focus(); });
$("forget").addEventListener("click", () => { forget(); $("question").focus(); });
$("clear").addEventListener("click", () => { setDocument(""); $("document").focus(); });
$("document").addEventListener("input", () => { suggest([]); documentChanged(); });
$("file").addEventListener("change", (event) => { openFile(event.target.files[0]); event.target.value = ""; });
const drop = document.querySelector(".document");
for (const type of ["dragenter", "dragover"]) drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("dropping"); });
for (const type of ["dragleave", "drop"]) drop.addEventListener(type, () => drop.classList.remove("dropping"));
drop.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length === 0) return;
  event.preventDefault();
  openFile(event.dataTransfer.files[0]);
});

function keyChanged() {
  const key = $("key").value.trim();
  try { sessionStorage.setItem("key", key); } catch { /* storage is off: the key lives as long as the page */ }
  setKey(key);
  $("key-panel").toggleAttribute("data-set", key !== "");
}
$("key").addEventListener("input", keyChanged);
$("key").addEventListener("change", () => { page.keyRefused = false; learnModel(); });
try { $("key").value = sessionStorage.getItem("key") ?? ""; } catch { /* the same */ }
keyChanged();

$("base").textContent = new URL("v1", document.baseURI).href;
graphs.start();
