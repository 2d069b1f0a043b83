// What the server says of itself in /metrics, read every second, as three small graphs of the last two minutes.
import {getText} from "./api.js";
import {shape} from "./answer.js";

const KEPT = 120;
const WIDTH = 240, HEIGHT = 56;
const count = (n) => Math.round(n).toLocaleString("en");

// Prometheus text -> Map of name to the sum of its samples.
export function parseMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)/.exec(line);
    if (match) sums.set(match[1], (sums.get(match[1]) ?? 0) + Number(match[2]));
  }
  return sums;
}

// One reading and the one before -> what the graphs show.
export function difference(now, before, seconds) {
  const value = (name) => now.get(name) ?? 0;
  // A server that started anew counts from zero.
  const grown = (name) => Math.max(0, value(name) - (before?.get(name) ?? value(name)));
  const looked = grown("vllm:prefix_cache_queries_total"), cached = Math.min(looked, grown("vllm:prefix_cache_hits_total"));
  return {
    running: value("vllm:num_requests_running"),
    waiting: value("vllm:num_requests_waiting"),
    tokens: seconds > 0 ? grown("vllm:generation_tokens_total") / seconds : 0,
    cached, computed: looked - cached,
    usage: value("vllm:kv_cache_usage_perc"),
  };
}

// Points of a line over the whole width, the newest at the right edge.
function points(values, highest) {
  return values.map((v, i) => `${(((KEPT - values.length + i) / (KEPT - 1)) * WIDTH).toFixed(1)},${(HEIGHT - 2 - (v / highest) * (HEIGHT - 6)).toFixed(1)}`);
}

export class Graphs {
  #before = null;
  #readAt = 0;
  #rows = [];
  #timer = 0;
  #reading = false;

  constructor({onState}) {
    this.onState = onState;
    for (const figure of document.querySelectorAll(".graphs figure svg")) figure.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  }

  start() {
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.soon(); });
    this.#read();
  }

  // Does not wait for the next second.
  soon() { this.#schedule(60); }

  #schedule(after) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#read(), after);
  }

  async #read() {
    if (this.#reading) return;
    this.#reading = true;
    let again = 1000;
    try {
      const metrics = parseMetrics(await getText("metrics", AbortSignal.timeout(5000)));
      const now = performance.now();
      this.#rows.push(difference(metrics, this.#before, (now - this.#readAt) / 1000));
      this.#rows.splice(0, this.#rows.length - KEPT);
      this.#before = metrics;
      this.#readAt = now;
      const ready = metrics.get("t6:ready") !== 0;
      this.onState(ready, "shutting down");
      this.#draw();
    } catch (error) {
      // A refusal is an answer too; only the graphs have to do without.
      const refused = error.status > 0 && error.status < 500;
      this.onState(refused, "not reachable");
      if (refused) again = 10_000;
      for (const value of document.querySelectorAll("[data-value]")) value.textContent = !refused ? "\u2013" : error.status === 404 ? "not shown here" : "needs an API key";
    }
    this.#reading = false;
    this.#schedule(document.hidden ? 10_000 : again);
  }

  #draw() {
    const rows = this.#rows, last = rows.at(-1), recent = rows.slice(-60);
    const sum = (name) => recent.reduce((total, row) => total + row[name], 0);
    this.#show("queue", `${count(last.running)} running, ${count(last.waiting)} waiting`, this.#queue(rows));
    const busiest = Math.max(...recent.map((row) => row.tokens));
    this.#show("throughput", `${count(last.tokens)} now, ${count(busiest)} at most`, this.#throughput(rows));
    const cached = sum("cached"), all = cached + sum("computed");
    this.#show("cache", all > 0 ? `${((100 * cached) / all).toFixed(0)} % of ${count(all)} tokens` : "no prompt in the last minute", this.#cache(rows));
  }

  #show(name, value, shapes) {
    const figure = document.getElementById(`graph-${name}`);
    const text = figure.querySelector("[data-value]");
    if (text.textContent !== value) text.textContent = value;
    figure.querySelector("svg").replaceChildren(...shapes);
  }

  #queue(rows) {
    const running = rows.map((row) => row.running), waiting = rows.map((row) => row.waiting);
    const highest = Math.max(4, ...running, ...waiting);
    const nobody = waiting.every((n) => n === 0);
    return [...this.#area(running, highest), ...(nobody ? [] : [this.#line(waiting, highest, "second")])];
  }

  #throughput(rows) {
    const values = rows.map((row) => row.tokens);
    return this.#area(values, Math.max(10, ...values));
  }

  // A bar for every second: what was cached below, what was computed above.
  #cache(rows) {
    const highest = Math.max(10, ...rows.map((row) => row.cached + row.computed));
    const width = WIDTH / KEPT;
    return rows.flatMap((row, i) => {
      const x = WIDTH - (rows.length - i) * width;
      const cached = (row.cached / highest) * (HEIGHT - 4), computed = (row.computed / highest) * (HEIGHT - 4);
      const bar = (y, height, name) => shape("rect", {x, y, width: width * 0.86, height, class: name});
      return [[cached, HEIGHT - cached, "cached"], [computed, HEIGHT - cached - computed, "computed"]]
        .filter(([height]) => height > 0).map(([height, y, name]) => bar(y, height, name));
    });
  }

  #line(values, highest, name) { return shape("polyline", {points: points(values, highest).join(" "), class: name}); }

  #area(values, highest) {
    const along = points(values, highest), left = along[0].split(",")[0];
    return [shape("polygon", {points: `${left},${HEIGHT} ${along.join(" ")} ${WIDTH},${HEIGHT}`, class: "area"}), this.#line(values, highest, "line")];
  }
}
