"use strict";
// the step, drawn for the window of time that is looked at; without scripts and in print of a fresh page the still picture stands
(() => {
  const source = document.getElementById("gantt-data"), home = document.getElementById("gantt");
  if (!source || !home) return;
  const step = JSON.parse(source.textContent), names = "http://www.w3.org/2000/svg";
  const bar = 30, gap = 10, foot = 34, tall = step.rows.length > 24 ? 20 : bar;
  const make = (name, set, text) => {
    const node = document.createElementNS(names, name);
    for (const key in set) node.setAttribute(key, set[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const still = home.firstElementChild, moving = make("svg", { role: "img", tabindex: "0", class: "moving" });
  moving.setAttribute("aria-label", "one step, rank by rank; plus and minus zoom, arrows move, 0 shows all");
  const buttons = document.createElement("div");
  buttons.className = "buttons";
  let from = 0, to = step.ticks;
  const time = (tick) => {
    const s = tick / step.ticks * step.seconds, unit = step.seconds >= 1 ? ["s", 1] : step.seconds >= 1e-3 ? ["ms", 1e3] : ["us", 1e6];
    return [s * unit[1], unit[0]];
  };
  const show = (begin, end) => {
    const width = Math.min(step.ticks, Math.max(40, end - begin));
    from = Math.min(Math.max(0, begin), step.ticks - width);
    to = from + width;
    draw();
  };
  const zoom = (by, at = 0.5) => { const middle = from + at * (to - from); show(middle - at * (to - from) * by, middle + (1 - at) * (to - from) * by); };
  const move = (by) => show(from + by * (to - from), to + by * (to - from));
  function draw() {
    const wide = home.clientWidth || 900, label = Math.min(90, 12 + 7.2 * Math.max(...step.rows.map((r) => r.name.length)));
    const inner = wide - label - 8, high = step.rows.length * (tall + gap) + foot, x = (t) => label + (t - from) / (to - from) * inner;
    moving.replaceChildren();
    moving.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    step.rows.forEach((row, i) => {
      const top = i * (tall + gap) + 2, paths = step.kinds.map(() => ""), texts = [];
      let [lastKind, lastEnd] = [-1, -1];
      for (let j = 0; j < row.spans.length; j += 4) {
        const [kind, start, length, batch] = row.spans.slice(j, j + 4);
        if (start + length < from || start > to) continue;
        const a = Math.max(label, x(start)), b = Math.min(label + inner, x(start + length)), lane = step.kinds[kind][3];
        if (kind === lastKind && b < lastEnd + 0.3) continue;
        [lastKind, lastEnd] = [kind, b];
        const y = lane ? top + tall + 1 : top, h = lane ? 5 : tall;
        paths[kind] += `M${a.toFixed(1)} ${y}H${Math.max(a + 0.4, b - 0.6).toFixed(1)}V${y + h}H${a.toFixed(1)}Z`;
        const text = step.kinds[kind][0] + batch;
        if (!lane && batch >= 0 && b - a > 7 * text.length + 6) texts.push([(a + b) / 2, top + tall / 2 + 4, text, step.kinds[kind][2]]);
      }
      paths.forEach((d, kind) => d && moving.append(make("path", { d, style: `fill:${step.kinds[kind][1]}` })));
      for (const [tx, ty, text, fill] of texts) moving.append(make("text", { x: tx, y: ty, "text-anchor": "middle", fill, "font-size": 11 }, text));
      moving.append(make("text", { x: label - 8, y: top + tall / 2 + 4, "text-anchor": "end", fill: "currentColor", "font-size": 12 }, row.name));
    });
    const base = high - foot + 8, [span, unit] = [time(to)[0] - time(from)[0], time(to)[1]];
    const raw = span / Math.max(2, Math.floor(inner / 110)), ten = 10 ** Math.floor(Math.log10(raw)), pace = ten * [1, 2, 5, 10].find((n) => n * ten >= raw);
    moving.append(make("path", { d: `M${label} ${base}H${label + inner}`, stroke: "currentColor", fill: "none" }));
    for (let t = Math.ceil(time(from)[0] / pace) * pace; t <= time(to)[0] + 1e-9 * pace; t += pace) {
      const at = x(t / time(step.ticks)[0] * step.ticks), last = at > label + inner - 30;
      moving.append(make("path", { d: `M${at.toFixed(1)} ${base}v4`, stroke: "currentColor" }));
      moving.append(make("text", { x: at, y: base + 18, "text-anchor": last ? "end" : at < label + 20 ? "start" : "middle", fill: "currentColor", "font-size": 11 }, `${+t.toPrecision(6)} ${unit}`));
    }
  }
  for (const [text, title, act] of [["+", "zoom in", () => zoom(0.5)], ["−", "zoom out", () => zoom(2)], ["←", "earlier", () => move(-0.4)],
    ["→", "later", () => move(0.4)], ["all", "the whole step", () => show(0, step.ticks)]]) {
    const button = document.createElement("button");
    [button.textContent, button.title, button.type] = [text, title, "button"];
    button.addEventListener("click", act);
    buttons.append(button);
  }
  const keys = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), 0: () => show(0, step.ticks) };
  moving.addEventListener("keydown", (e) => { if (keys[e.key]) { keys[e.key](); e.preventDefault(); } });
  moving.addEventListener("wheel", (e) => {
    // a page scrolls past the figure; with a key, or sideways, the wheel is the figure's
    const box = moving.getBoundingClientRect();
    if (e.ctrlKey || e.shiftKey || e.altKey || document.activeElement === moving) zoom(e.deltaY > 0 ? 1.25 : 0.8, Math.min(1, Math.max(0, (e.clientX - box.left) / box.width)));
    else if (Math.abs(e.deltaX) > Math.abs(e.deltaY)) move(e.deltaX / box.width);
    else return;
    e.preventDefault();
  }, { passive: false });
  let held = null;
  moving.addEventListener("pointerdown", (e) => { held = [e.clientX, from, to]; moving.setPointerCapture(e.pointerId); });
  moving.addEventListener("pointermove", (e) => { if (held) { const by = (held[0] - e.clientX) / moving.getBoundingClientRect().width * (held[2] - held[1]); show(held[1] + by, held[2] + by); } });
  for (const end of ["pointerup", "pointercancel"]) moving.addEventListener(end, () => { held = null; });
  still.replaceWith(moving);
  home.before(buttons);
  new ResizeObserver(draw).observe(home);
  draw();
})();
