"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const config = { responsive: true, displaylogo: false, displayModeBar: false, plotlyServerURL: "" };
  const byId = (id) => document.getElementById(id);
  const drawn = new Map();

  // --- figures: each is drawn when it comes near the window, and all of them before printing
  function draw(div) {
    const name = div.dataset.figure;
    if (!drawn.has(name)) {
      const made = study.figures[name];
      drawn.set(name, Plotly.newPlot(div, made.data, made.layout, config));
      if (name === "front") drawn.get(name).then(listen);
    }
    return drawn.get(name);
  }
  function listen(div) {
    div.on("plotly_click", (event) => {
      const place = event.points[0].customdata;
      if (place !== undefined) pick(place);
    });
  }
  const redraw = (name) => {
    const made = study.figures[name];
    if (drawn.has(name)) Plotly.react(byId("figure-" + name), made.data, made.layout, config);
  };
  const figures = [...document.querySelectorAll("[data-figure]")];
  const near = new IntersectionObserver(
    (seen) => seen.filter((entry) => entry.isIntersecting).forEach((entry) => {
      near.unobserve(entry.target);
      draw(entry.target);
    }),
    { rootMargin: "300px" },
  );
  addEventListener("beforeprint", () => figures.forEach(draw));

  // --- values as people read them
  const bytes = (v) => Math.round(v).toLocaleString("en-US") + " B" + (v < 1e5 ? "" : ` (${(v / 1e6).toFixed(2)} MB)`);
  function quantity(value, resource) {
    if (resource.endsWith("_bytes")) return bytes(value);
    if (resource === "latency_us") return (value / 1e3).toFixed(3) + " ms";
    if (resource === "energy_mj") return value.toFixed(3) + " mJ";
    return resource === "bops" ? (value / 1e9).toFixed(3) + " GBOPs" : String(value);
  }
  const named = { size_bytes: "size", latency_us: "latency", energy_mj: "energy", memory_bytes: "peak memory", bops: "bit operations" };

  function facts(point) {
    const rows = [];
    for (const [resource, value] of Object.entries(point.predicted)) {
      const measured = point.measured[resource];
      let text = quantity(value, resource);
      if (measured !== undefined && point.kind !== "float") text += `; measured ${quantity(measured, resource)}`;
      rows.push([named[resource] || resource, text]);
    }
    rows.push(["predicted damage", point.damage[study.objective].toPrecision(4)]);
    if ("loss" in point.measured) rows.push([`${study.measure}, search images`, point.measured.loss.toFixed(5)]);
    if ("kl" in point.measured) rows.push([`${study.measure}, evaluation images`, point.measured.kl.toFixed(5)]);
    if ("top1" in point.measured) rows.push(["top-1", (100 * point.measured.top1).toFixed(2) + " %"]);
    rows.push(["keeps the budgets", point.fits ? "yes, as predicted" : "no, as predicted"]);
    return rows;
  }

  // --- the choice of a layer under a point: place in the list of candidates
  const choice = (point, layer) => point.indices.charCodeAt(layer) - 48;
  const kind = (point, layer) => point.indices ? study.kinds[study.candidates[layer][choice(point, layer)]] : ["float", 32, 32];

  // --- what is picked
  let picked = study.chosen, across = 0, upward = 0;
  function value(axis, point) {
    const held = { cost: point.predicted, damage: point.damage, "": point.measured }[axis.kind][axis.name];
    return held === undefined || (axis.log && held <= 0) ? null : held / axis.scale;
  }
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

  function bits() {
    const point = study.points[picked], even = byId("width").value === "even";
    const made = study.figures.bits;
    made.data.forEach((trace, row) => {
      const held = trace.customdata.map((layer) => kind(point, layer));
      const bitsOf = held.map((k) => k[row + 1]);
      trace.area = trace.area || { x: trace.x, width: trace.width };
      trace.x = even ? held.map((_, i) => i + 0.5) : trace.area.x;
      trace.width = even ? held.map(() => 1) : trace.area.width;
      trace.y = bitsOf.map((b) => Math.min(b, study.highest));
      trace.text = bitsOf.map((b) => (b === 32 ? "float" : b ? String(b) : ""));
      trace.marker = { ...trace.marker, color: bitsOf.map((b) => study.colours[b]) };
      trace.hovertext = trace.customdata.map((layer, i) => hover(point, layer, held[i]));
    });
    for (const axis of [made.layout.xaxis, made.layout.xaxis2]) axis.autorange = true;
    redraw("bits");
  }
  function hover(point, layer, held) {
    const [name, op, shape, macs, block] = study.layers[layer].map((v) => escaped(String(v)));
    let text = `<b>${name}</b> ${held[0]}<br>${op}${shape ? ", weight " + shape : ""}<br>${Number(macs).toLocaleString("en-US")} MACs, block ${block}`;
    for (const [resource, table] of Object.entries(study.costs)) {
      if (point.indices) text += `<br>${quantity(table[layer][choice(point, layer)], resource)}`;
    }
    return text;
  }

  function pick(place) {
    picked = place;
    const point = study.points[place], panel = byId("picked");
    panel.dataset.point = point.name === null ? "" : point.name;
    panel.querySelector("h3").textContent = (point.kind === "chosen" ? "★ " : "") + point.label;
    const list = panel.querySelector("dl");
    list.replaceChildren(...facts(point).flatMap(([name, text]) => [["dt", name], ["dd", text]].map(([tag, content]) => {
      const element = document.createElement(tag);
      element.textContent = content;
      return element;
    })));
    byId("known").hidden = point.name === null;
    byId("command").textContent = point.name === null ? "" : study.command.replace(study.placeholder, point.name);
    byId("by-file").hidden = !point.indices;
    byId("by-file").open = point.name === null;
    byId("materialize").textContent = study.materialize;
    byId("rows").value = [...byId("rows").options].some((o) => o.value === String(place)) ? String(place) : "";
    if (point.kind === "front") byId("along").value = front.indexOf(place);
    ring();
    bits();
  }
  function ring() {
    const trace = study.figures.front.data.at(-1), point = study.points[picked];
    const at = [value(study.across[across], point), value(study.upward[upward], point)];
    [trace.x, trace.y] = at.includes(null) ? [[null], [null]] : at.map((v) => [v]);
    if (drawn.has("front")) Plotly.restyle("figure-front", { x: [trace.x], y: [trace.y] }, [study.figures.front.data.length - 1]);
  }

  // --- axes
  const placed = () => {
    const made = study.figures.front, x = study.across[across], y = study.upward[upward];
    for (const trace of made.data.slice(0, -1)) {
      const both = trace.customdata.map((i) => [value(x, study.points[i]), value(y, study.points[i])]);
      const known = both.map((pair) => (pair.includes(null) ? [null, null] : pair));
      trace.x = known.map((pair) => pair[0]);
      trace.y = known.map((pair) => pair[1]);
    }
    const layout = made.layout;
    layout.xaxis = { ...layout.xaxis, title: { text: escaped(x.title) }, type: x.log ? "log" : "linear", dtick: x.log ? "D2" : null, autorange: true };
    layout.yaxis = { ...layout.yaxis, title: { text: escaped(y.title) }, type: y.log ? "log" : "linear", dtick: y.log ? "D2" : null, autorange: true };
    layout.shapes = x.budgets.map(([at]) => ({ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "y domain", line: { color: "#dd4b3e", width: 1.5, dash: "dash" } }));
    layout.annotations = x.budgets.map(([at, text]) => ({ x: at, y: 1, yref: "y domain", yanchor: "bottom", text: "budget " + escaped(text), showarrow: false, font: { color: "#dd4b3e" } }));
    ring();
    redraw("front");
  };
  function zoom() {
    const trials = study.points.filter((p) => p.kind === "trial" || p.kind === "chosen" || p.kind === "uniform");
    const layout = study.figures.front.layout;
    for (const [axis, by] of [["xaxis", study.across[across]], ["yaxis", study.upward[upward]]]) {
      const held = trials.map((p) => value(by, p)).filter((v) => v !== null).map((v) => (by.log ? Math.log10(v) : v));
      if (!held.length) continue;
      const low = Math.min(...held), high = Math.max(...held), room = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
      layout[axis] = { ...layout[axis], autorange: false, range: [low - room, high + room] };
    }
    redraw("front");
  }

  // --- controls
  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([content, text]) => new Option(text, content)));
    select.value = String(chosen);
  }
  const front = study.points.map((p, i) => [p, i]).filter(([p]) => p.kind === "front").map(([, i]) => i);
  const rows = study.points.map((p, i) => [i, p.label, p.kind]).filter(([, , k]) => k !== "front" && k !== "trial");
  options(byId("across"), study.across.map((axis, i) => [i, axis.title]), 0);
  options(byId("upward"), study.upward.map((axis, i) => [i, axis.title]), 0);
  options(byId("rows"), [["", "a point of the figure"], ...rows.map(([i, label]) => [i, label])], study.chosen);
  byId("along").max = String(Math.max(0, front.length - 1));
  byId("along-label").hidden = front.length < 2;
  byId("across").addEventListener("change", (event) => { across = Number(event.target.value); placed(); });
  byId("upward").addEventListener("change", (event) => { upward = Number(event.target.value); placed(); });
  byId("rows").addEventListener("change", (event) => event.target.value && pick(Number(event.target.value)));
  byId("along").addEventListener("input", (event) => pick(front[Number(event.target.value)]));
  byId("width").addEventListener("change", bits);
  byId("zoom").addEventListener("click", zoom);

  // --- copying, also where a page from a file may not write to the clipboard
  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  }
  document.querySelectorAll("button.copy").forEach((button) => button.addEventListener("click", () => copy(button.nextElementSibling.textContent, button)));
  byId("copy-assignment").addEventListener("click", (event) => {
    const point = study.points[picked];
    const held = Object.fromEntries(study.layers.map(([name], layer) => [name, kind(point, layer)[0]]));
    copy(JSON.stringify({ format: "mpsearch-assignment", schema: 1, assignment: held }, null, 1), event.target);
  });

  pick(study.chosen);
  figures.forEach((div) => near.observe(div));
  document.body.dataset.ready = "yes";
})();
