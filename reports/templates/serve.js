// The page of `headway serve`: asks while sliders move; of several answers the newest wins, and older questions are given up.
"use strict";

const WAIT_MS = 90;
const FIELDS = ["gpus", "tokens", "seq_len", "network", "price", "failures"];
const NUMBERS = new Set(["gpus", "seq_len", "failures"]);
const at = (id) => document.getElementById(id);
let values = {}, own = {}, config = null, timer = 0, asking = null, planning = null;

class Wrong extends Error {}

async function post(path, data, signal) {
  const reply = await fetch(path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(data), signal,
  });
  if (!reply.ok) throw new Wrong((await reply.json()).error);
  return reply;
}

function question() {
  const asked = { model: at("model").value, cluster: at("cluster").value };
  if (at("precision").value) asked.precision = at("precision").value;
  for (const name of FIELDS) {
    const text = at(name).value.trim();
    if (text) asked[name] = NUMBERS.has(name) ? Number(text.replaceAll(",", "")) : text;
  }
  if (config && config.name === asked.model) asked.config = config.text;
  return asked;
}

function place(name) {
  // the slider goes where the text says; a text between its values leaves it
  const slider = at(name + "-slider"), index = values[name].indexOf(at(name).value);
  if (index >= 0) slider.value = index;
  slider.setAttribute("aria-valuetext", at(name).value || "none");
}

function nearest(name) {
  // what another model or cluster cannot have becomes the next that it can
  const wanted = Number(at(name).value);
  const best = values[name].map(Number).reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
  at(name).value = String(best);
}

async function controls(changed) {
  const { model, cluster, config: text } = question();
  const data = await (await post("/api/controls", { model, cluster, ...(text ? { config: text } : {}) })).json();
  own = data.own;
  for (const name of FIELDS) {
    values[name] = data.values[name].map(String);
    at(name + "-slider").max = values[name].length - 1;
    at(name + "-note").textContent = data.notes[name] || "";
  }
  const precision = at("precision").value;
  at("precision").replaceChildren(...data.precisions.map((name) => new Option(name, name)));
  at("precision").value = data.precisions.includes(precision) ? precision : own.precision;
  if (changed === "cluster" || !at("network").value) at("network").value = own.network;
  if (changed === "cluster" || !at("price").value) at("price").value = own.price;
  if (changed === "model" && Number(at("seq_len").value) !== own.seq_len) at("seq_len").value = own.seq_len;
  if (changed === "cluster" && !values.gpus.includes(at("gpus").value)) nearest("gpus");
  FIELDS.forEach(place);
}

function busy(is) {
  at("answer").setAttribute("aria-busy", String(is));
  if (is) at("sizes").setAttribute("aria-busy", "true");
}

function say(error) {
  if (error?.name === "AbortError") return;
  if (error) busy(false);
  const line = !error ? "" : error instanceof Wrong ? error.message : "The server does not answer: is `headway serve` still running?";
  at("wrong").textContent = line;
  if (line) at("short").textContent = line;
  for (const name of FIELDS) at(name).setAttribute("aria-invalid", String(line.includes(name + ":")));
}

function fill(pieces) {
  for (const name of ["verdict", "time", "memory"]) at(name).innerHTML = pieces[name] || "";
  at("short").textContent = pieces.short;
}

async function ask() {
  asking?.abort();
  const mine = (asking = new AbortController());
  const asked = question();
  try {
    const answer = await (await post("/api/answer", asked, mine.signal)).json();
    if (mine !== asking) return;
    say(null);
    fill(answer.html);
    at("searched").textContent = `The best of ${answer.strategies_total.toLocaleString("en")} usual strategies, ` +
      `${answer.strategies_priced.toLocaleString("en")} of them legal.`;
    at("command").textContent = answer.command;
    busy(false);
    const sizes = await (await post("/api/sizes", asked, mine.signal)).json();
    if (mine !== asking) return;
    at("sizes").innerHTML = sizes.html;
    at("sizes").setAttribute("aria-busy", "false");
  } catch (error) {
    if (mine === asking) say(error);
  }
}

function soon() {
  busy(true);
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT_MS);
}

async function download() {
  planning?.abort();
  const mine = (planning = new AbortController());
  at("files").replaceChildren();
  at("share").value = 0;
  at("progress").hidden = at("stop").hidden = false;
  try {
    const reply = await post("/api/plan", question(), mine.signal);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "", last = null;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) {
        last = JSON.parse(line);
        if (last.share) at("share").value = last.share;
      }
    }
    if (!last || last.error) throw new Wrong(last ? last.error : "plan: the server left");
    offer(last);
  } catch (error) {
    say(error);
  } finally {
    if (mine === planning) at("progress").hidden = at("stop").hidden = true;
  }
}

function offer(plan) {
  const said = document.createElement("p");
  said.textContent = `The best of all ${plan.strategies_total.toLocaleString("en")} strategies: ${plan.strategy}. `;
  for (const [name, text] of Object.entries(plan.files)) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
    link.download = link.textContent = name;
    said.append(link, " ");
  }
  at("files").replaceChildren(said);
  said.querySelector("a").click();
}

async function upload() {
  const file = at("config").files[0];
  if (!file) return;
  busy(true);
  config = { name: file.name.replace(/[^A-Za-z0-9._ -]/g, "_"), text: await file.text() };
  const option = new Option(config.name, config.name, false, true);
  at("model").querySelector("option[data-own]")?.remove();
  option.dataset.own = "";
  at("model").prepend(option);
  at("model").value = config.name;
  await changed("model");
}

async function changed(which) {
  busy(true);
  try {
    await controls(which);
    soon();
  } catch (error) {
    say(error);
  }
}

for (const name of FIELDS) {
  at(name).addEventListener("input", () => { place(name); soon(); });
  at(name + "-slider").addEventListener("input", (event) => {
    at(name).value = values[name][event.target.value];
    place(name);
    soon();
  });
}
at("model").addEventListener("change", () => changed("model"));
at("cluster").addEventListener("change", () => changed("cluster"));
at("precision").addEventListener("change", soon);
at("config").addEventListener("change", upload);
at("download").addEventListener("click", download);
at("stop").addEventListener("click", () => planning?.abort());
at("question").addEventListener("submit", (event) => event.preventDefault());
changed("start");
