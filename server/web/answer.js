// One question and its answer, as it grows.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, classes, text) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const count = (n) => n.toLocaleString("en");
const time = (s) => (s < 0.01 ? `${(s * 1000).toFixed(1)} ms` : s < 1 ? `${(s * 1000).toFixed(0)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`);

export class AnswerView {
  constructor(question) {
    this.text = "";
    this.first = this.total = null;
    this.usage = null;
    this.element = element("li");
    this.body = element("p", "answer");
    this.body.setAttribute("aria-busy", "true");
    this.element.append(element("p", "asked", question), this.body);
  }

  // An event of streamChat. White space that many models put before an answer is not shown.
  show({text, usage, finish, seconds}) {
    if (text !== undefined) {
      this.text = this.text === "" ? text.trimStart() : this.text + text;
      this.first ??= seconds;
      this.body.textContent = this.text;
    }
    if (finish !== undefined) { this.total = seconds; this.finish = finish; }
    if (usage !== undefined) this.usage = usage;
  }

  summary() {
    if (!this.usage) return "";
    const cached = this.usage.prompt_tokens_details?.cached_tokens ?? 0;
    return `${count(cached)} tokens cached, ${count(this.usage.prompt_tokens - cached)} computed, first token after ${time(this.first ?? this.total ?? 0)}`;
  }

  // Once, whoever says it first: fail() or the one that asked.
  end() {
    if (!this.body.hasAttribute("aria-busy")) return;
    this.body.removeAttribute("aria-busy");
    if (this.text === "" && !this.failed) this.body.append(element("span", "soft", "(an empty answer)"));
    if (this.usage) this.element.append(this.#facts());
  }

  #facts() {
    const {prompt_tokens: prompt, completion_tokens: made, prompt_tokens_details: details} = this.usage;
    const cached = details?.cached_tokens ?? 0;
    const share = prompt > 0 ? (100 * cached) / prompt : 0;
    const facts = element("div", "facts");
    const bar = shape("svg", {viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true"});
    bar.append(shape("rect", {width: share, height: 6, class: "cached"}), shape("rect", {x: share, width: 100 - share, height: 6, class: "computed"}));
    const list = element("ul", "num");
    const add = (text, swatch) => {
      const item = element("li");
      if (swatch) item.append(element("span", `swatch ${swatch}`));
      item.append(text);
      list.append(item);
    };
    add(`${count(cached)} cached`, "cached");
    add(`${count(prompt - cached)} computed`, "computed");
    if (this.first !== null) add(`first token ${time(this.first)}`);
    const rate = made >= 8 && this.total > this.first ? `, ${count(Math.round((made - 1) / (this.total - this.first)))} a second` : "";
    add(`${count(made)} ${made === 1 ? "token" : "tokens"}${rate}`);
    if (this.finish === "length") add("ended at its limit");
    facts.append(bar, list);
    return facts;
  }

  stopped() {
    this.failed = true;
    this.element.append(element("p", "soft", "Stopped."));
  }

  fail(title, message) {
    this.failed = true;
    const box = element("div", "failure");
    box.setAttribute("role", "alert");
    box.append(element("strong", "", title), element("span", "", message));
    this.element.append(box);
    this.end();
  }
}
