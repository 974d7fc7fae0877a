"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const value = (x) => (x === null ? NaN : Number(x));
  const modules = data.modules.map(([path, kind], index) => ({ index, path, kind, rows: [], name: path || "outside any module" }));
  const rows = data.rows.map(([module, operation, phase, format, counts, largest, smallest, local, localUlps, error, ulps, place], index) => {
    const row = { index, module, operation: data.operations[operation], phase, format, place: place === null ? "" : data.places[place] };
    data.counts.forEach((name, i) => { row[name] = counts[i]; });
    Object.assign(row, { largest: value(largest), smallest: value(smallest), local: value(local), error: value(error), ulps: value(ulps) });
    modules[module].rows.push(row);
    return row;
  });
  const state = { metric: null, module: null, column: null, descending: true, everything: false, current: null };
  const MOST_SHOWN = 250;

  // Elements are made, never parsed: names are text wherever they stand.
  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }
  const namespace = document.querySelector("#theme svg")?.namespaceURI;
  function draw(tag, attributes = {}, text = "") {
    const element = document.createElementNS(namespace, tag);
    for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
    element.textContent = text;
    return element;
  }
  const short = (x) => {
    if (Number.isNaN(x)) return "";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) return x.toExponential(2);
    return String(Number(x.toPrecision(4)));
  };
  const percent = (x) => (x === 0 ? "0" : x < 1e-4 ? `${(100 * x).toExponential(0)} %` : `${Number((100 * x).toPrecision(2))} %`);
  const within = (module) => (row) => {
    if (module === null) return true;
    const path = modules[row.module].path, outer = modules[module].path;
    return path === outer || (outer !== "" && path.startsWith(`${outer}.`));
  };

  // Metrics: what the map can be coloured by, each from 0 (nothing) to 1 on a logarithmic scale that is always the same.
  const share = (part, whole) => (own) => {
    const of = own.reduce((sum, row) => sum + row[whole], 0);
    return of ? own.reduce((sum, row) => sum + row[part], 0) / of : NaN;
  };
  const most = (name) => (own) => own.reduce((largest, row) => (row[name] > largest || Number.isNaN(largest) ? row[name] : largest), NaN);
  const roundoff = data.formats.length ? data.formats[0].roundoff : 2 ** -24;
  const metrics = [
    { name: "cumulative error", of: most("error"), low: roundoff / 16, text: short },
    { name: "local error", of: most("local"), low: roundoff / 16, text: short },
    { name: "overflow", of: share("overflows", "elements"), low: 1e-6, text: percent },
    { name: "infinity or NaN made", of: share("made", "elements"), low: 1e-6, text: percent },
    { name: "swamped additions", of: share("swamped", "additions"), low: 1e-6, text: percent },
    { name: "updates lost", of: share("lost", "updates"), low: 1e-3, text: percent },
    { name: "underflow", of: share("underflows", "elements"), low: 1e-6, text: percent },
    { name: "subnormal results", of: share("subnormals", "elements"), low: 1e-6, text: percent },
  ].filter((metric) => modules.some((module) => !Number.isNaN(metric.of(module.rows))));
  const heat = (metric, x) => {
    if (Number.isNaN(x) || x <= 0) return 0;
    return Math.min(1, Math.max(0.08, 1 - Math.log(Math.min(x, 1)) / Math.log(metric.low)));
  };

  // The map: boxes within boxes, as modules within modules.
  const tiles = [];
  function makeMap() {
    const root = { inside: new Map(), name: "", module: null };
    for (const module of modules) {
      let node = root;
      for (const part of module.path ? module.path.split(".") : []) {
        if (!node.inside.has(part)) node.inside.set(part, { inside: new Map(), name: part, module: null });
        node = node.inside.get(part);
      }
      node.module = module;
    }
    const element = (node) => {
      const label = node.name || "outside any module";
      let tile = make("span", { className: "tile", textContent: label });
      if (node.module) {
        tile = make("button", { type: "button", className: "tile", tabIndex: tiles.length ? -1 : 0, textContent: label });
        tile.append(make("span", { className: "type", textContent: node.module.kind }));
        tile.dataset.module = node.module.index;
        tiles.push(tile);
      }
      if (!node.inside.size) return tile;
      const inside = make("div", { className: "inside" });
      const box = make("div", { className: "box" }, tile, inside);
      for (const part of node.inside.values()) inside.append(element(part));
      return box;
    };
    if (root.module) byId("map").append(element({ ...root, inside: new Map() }));
    for (const part of root.inside.values()) byId("map").append(element(part));
  }
  function colourMap() {
    const metric = metrics[state.metric];
    for (const tile of tiles) {
      const module = modules[tile.dataset.module];
      const x = metric ? metric.of(module.rows) : NaN;
      const hot = metric ? heat(metric, x) : 0;
      if (hot) tile.style.setProperty("--heat", hot.toFixed(3));
      else tile.removeAttribute("style");
      tile.title = `${module.name}${module.kind ? `\n${module.kind}` : ""}${metric ? `\n${metric.name}: ${metric.text(x) || "-"}` : ""}`;
      tile.setAttribute("aria-pressed", String(state.module === module.index));
    }
    byId("low").textContent = metric ? metric.text(metric.low) : "";
    byId("high").textContent = metric ? metric.text(1) : "";
  }

  // The histograms: binades against the format's range.
  function drawHistograms() {
    byId("selected-name").textContent = state.module === null ? "all modules" : modules[state.module].name;
    const drawings = byId("drawings");
    drawings.replaceChildren();
    for (const role of ["weight", "activation", "gradient"]) {
      const found = data.histograms.filter(([module, own]) => own === role && within(state.module)({ module }));
      if (found.length) drawings.append(histogram(role, found));
    }
    if (!drawings.children.length) drawings.append(make("p", { className: "small", textContent: data.histograms.length ? "This module has none." : "None were kept: run(..., observe=\"histograms\") keeps them." }));
  }
  function histogram(role, parts) {
    const format = data.formats.find((limits) => limits.name === parts[0][2]);
    const counts = new Map();
    let [zeros, infinite, nan] = [0, 0, 0];
    for (const [, , , first, own, specials] of parts) {
      own.forEach((count, i) => { if (count) counts.set(first + i, (counts.get(first + i) || 0) + count); });
      zeros += specials[0]; infinite += specials[1]; nan += specials[2];
    }
    const exponents = [...counts.keys(), ...(format ? [format.least, format.emax] : [])];
    const low = Math.min(...exponents, 0) - 1, high = Math.max(...exponents, 0) + 1;
    const place = (exponent) => `${(100 * (exponent - low)) / (high - low + 1)}%`;
    const wide = (binades) => `${(100 * binades) / (high - low + 1)}%`;
    const height = 120, top = Math.max(1, ...counts.values());
    const total = zeros + infinite + nan + [...counts.values()].reduce((sum, count) => sum + count, 0);
    const svg = draw("svg", { width: "100%", height: height + 18, role: "img", "aria-label": `binary exponents of ${role}s` });
    if (format) {
      svg.append(draw("rect", { class: "normal", x: place(format.emin), width: wide(format.emax - format.emin + 1), y: 0, height }));
      if (format.least < format.emin) svg.append(draw("rect", { class: "subnormal", x: place(format.least), width: wide(format.emin - format.least), y: 0, height }));
      for (const exponent of [format.least, format.emin, format.emax + 1]) svg.append(draw("text", { x: place(exponent), y: height + 14, "text-anchor": "middle" }, `2^${exponent}`));
    }
    for (const [exponent, count] of counts) {
      const tall = Math.max(1, (height * count) / top);
      const bar = draw("rect", { class: "bar", x: place(exponent + 0.1), width: wide(0.8), y: height - tall, height: tall });
      bar.append(draw("title", {}, `2^${exponent}: ${count.toLocaleString("en")} (${percent(count / total)})`));
      svg.append(bar);
    }
    const outside = [[zeros, "zero"], [infinite, "infinite"], [nan, "NaN"]].filter(([count]) => count);
    if (format) {
      const subnormal = [...counts].reduce((sum, [exponent, count]) => sum + (exponent < format.emin ? count : 0), 0);
      if (subnormal) outside.unshift([subnormal, "below the normal numbers"]);
    }
    const words = outside.map(([count, name]) => `${percent(count / total)} ${name}`).join(", ") || "all are normal numbers";
    return make("figure", { className: role }, make("figcaption", { textContent: `${role}s${format ? `, ${format.name}` : ""}` }), svg,
      make("p", { className: "small", textContent: `${total.toLocaleString("en")} numbers: ${words}` }));
  }

  // The rows.
  const word = (name, of) => ({ name, word: true, key: of, text: of });
  const count = (name, whole) => ({ name, key: (row) => row[name], whole, count: true, text: (row) => row[name].toLocaleString("en") });
  const measure = (name, own = name) => ({ name, key: (row) => row[own], text: (row) => short(row[own]) });
  const columns = [
    word("module", (row) => modules[row.module].name), word("operation", (row) => row.operation), word("pass", (row) => row.phase),
    word("format", (row) => row.format), count("elements"), count("overflows", "elements"), count("underflows", "elements"),
    count("subnormals", "elements"), count("nonfinite", "elements"), count("made", "elements"), count("additions"),
    count("swamped", "additions"), count("updates"), count("lost", "updates"), measure("largest"), measure("smallest"),
    measure("local"), measure("cumulative", "error"), measure("ulps"), word("place", (row) => row.place),
  ].filter((column) => column.name === "module" || rows.some((row) => (column.count ? row[column.name] : column.text(row) !== "")));
  const eventful = (row) => row.overflows || row.underflows || row.made || row.nonfinite || row.swamped || row.lost;

  function makeHead() {
    const head = document.querySelector("thead tr");
    columns.forEach((column, index) => {
      const button = make("button", { type: "button", textContent: column.name });
      button.addEventListener("click", () => {
        state.descending = state.column === index ? !state.descending : !column.word;
        state.column = index;
        showRows();
      });
      const cell = make("th", { scope: "col", className: `${column.word ? "word" : ""} ${column.name}` }, button);
      cell.setAttribute("aria-sort", "none");
      head.append(cell);
    });
    for (const phase of new Set(rows.map((row) => row.phase).filter(Boolean))) byId("phase").append(make("option", { value: phase, textContent: phase }));
  }
  function chosenRows() {
    const wanted = byId("query").value.trim().toLowerCase(), phase = byId("phase").value, notable = byId("notable").checked;
    const inside = within(state.module);
    const found = rows.filter((row) => inside(row) && (!phase || row.phase === phase) && (!notable || eventful(row)) &&
      (!wanted || `${modules[row.module].name} ${row.operation} ${row.place}`.toLowerCase().includes(wanted)));
    if (state.column === null) return found;
    const { key, word: isWord } = columns[state.column], sign = state.descending ? -1 : 1;
    return found.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (isWord) return sign * x.localeCompare(y) || a.index - b.index;
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.index - b.index; // unknown ones last
      return (x === y ? 0 : sign * (x < y ? -1 : 1)) || a.index - b.index;
    });
  }
  function showRows() {
    const found = chosenRows();
    let shown = state.everything ? found : found.slice(0, MOST_SHOWN);
    if (state.current && found.includes(state.current) && !shown.includes(state.current)) shown = [...shown, state.current];
    document.querySelector("tbody").replaceChildren(...shown.map((row, index) => {
      const line = make("tr", { tabIndex: index ? -1 : 0 });
      line.dataset.row = row.index;
      if (row === state.current) line.classList.add("current");
      for (const column of columns) line.append(cellOf(row, column));
      return line;
    }));
    document.querySelectorAll("thead th").forEach((cell, index) => {
      cell.setAttribute("aria-sort", index !== state.column ? "none" : state.descending ? "descending" : "ascending");
    });
    const more = data.left_out ? `; ${data.left_out.toLocaleString("en")} quiet ones are only in report.to_json()` : "";
    byId("shown").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows${more}`;
    byId("all").hidden = shown.length >= found.length;
    byId("all").textContent = `show all ${found.length.toLocaleString("en")} rows`;
    byId("clear").hidden = state.module === null;
    byId("clear").textContent = state.module === null ? "" : `${modules[state.module].name} ✕`;
  }
  function cellOf(row, column) {
    const cell = make("td", { className: column.word ? `word ${column.name}` : "", textContent: column.text(row) });
    if (column.count && !row[column.name]) {
      cell.textContent = "·";
      cell.classList.add("none");
    } else if (column.whole) {
      cell.classList.add("some");
      if (row[column.whole]) cell.append(" ", make("small", { textContent: percent(row[column.name] / row[column.whole]) }));
    }
    if (column.name === "module") cell.title = `${modules[row.module].name}\n${modules[row.module].kind}`;
    return cell;
  }

  function select(module) {
    state.module = module;
    state.everything = false;
    colourMap();
    drawHistograms();
    showRows();
  }
  function showEvent(index) {
    const [module, operation, phase] = data.events[index];
    state.current = rows.find((row) => row.module === module && row.operation === data.operations[operation] && (!phase || row.phase === phase)) || null;
    byId("query").value = byId("phase").value = "";
    byId("notable").checked = false;
    select(module);
    const line = state.current && document.querySelector(`tr[data-row="${state.current.index}"]`);
    byId("network").scrollIntoView({ block: "start" });
    (line || tiles.find((tile) => Number(tile.dataset.module) === module)).focus({ preventScroll: Boolean(line) });
    if (line) line.scrollIntoView({ block: "nearest" });
  }
  function goToEvent(step) {
    const items = [...document.querySelectorAll(".events > li")];
    if (!items.length) return;
    const now = items.findIndex((item) => item.classList.contains("current"));
    const next = items[Math.min(items.length - 1, Math.max(0, now + step))];
    items.forEach((item) => item.classList.toggle("current", item === next));
    next.closest("details")?.setAttribute("open", "");
    next.focus();
  }
  function move(event, elements) {
    const now = elements.indexOf(document.activeElement);
    const ways = { ArrowDown: now + 1, ArrowRight: now + 1, ArrowUp: now - 1, ArrowLeft: now - 1, Home: 0, End: elements.length - 1 };
    if (now < 0 || !(event.key in ways)) return;
    event.preventDefault();
    const next = elements[Math.min(elements.length - 1, Math.max(0, ways[event.key]))];
    elements[now].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  function listen() {
    byId("map").addEventListener("click", (event) => {
      const tile = event.target.closest("button.tile");
      if (tile) select(state.module === Number(tile.dataset.module) ? null : Number(tile.dataset.module));
    });
    byId("map").addEventListener("keydown", (event) => move(event, tiles));
    const body = document.querySelector("tbody");
    const choose = (event) => {
      const line = event.target.closest("tr");
      if (line) select(rows[line.dataset.row].module);
    };
    body.addEventListener("click", (event) => { if (event.target.closest("td.module")) choose(event); });
    body.addEventListener("keydown", (event) => {
      if (event.key === "Enter") choose(event);
      else if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") move(event, [...body.children]);
    });
    document.querySelectorAll(".column").forEach((column) => {
      const module = modules.find(({ path }) => path === column.dataset.path);
      if (module) column.addEventListener("click", () => { select(module.index); byId("network").scrollIntoView(); });
    });
    document.querySelectorAll(".jump").forEach((button) => button.addEventListener("click", () => showEvent(Number(button.dataset.event))));
    byId("metric").addEventListener("change", (event) => { state.metric = Number(event.target.value); colourMap(); });
    document.querySelectorAll(".timeline a").forEach((mark) => mark.addEventListener("click", () => {
      document.querySelector(mark.getAttribute("href")).closest("details")?.setAttribute("open", "");
    }));
    byId("query").addEventListener("input", showRows);
    for (const id of ["phase", "notable"]) byId(id).addEventListener("change", showRows);
    byId("all").addEventListener("click", () => { state.everything = true; showRows(); });
    byId("clear").addEventListener("click", () => select(null));
    byId("theme").addEventListener("click", () => {
      const dark = document.body.dataset.theme ? document.body.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      document.body.dataset.theme = dark ? "light" : "dark";
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { byId("query").value = ""; state.current = null; select(null); return; }
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
      if (event.key === "/") { event.preventDefault(); byId("query").focus(); }
      if (event.key === "n") goToEvent(1);
      if (event.key === "p") goToEvent(-1);
    });
    document.querySelectorAll("pre.code").forEach((block) => {
      const button = make("button", { type: "button", className: "copy", textContent: "copy" });
      const text = block.textContent;
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(text.trimEnd());
          button.textContent = "copied";
        } catch {
          getSelection().selectAllChildren(block.querySelector("code"));
          button.textContent = "selected: press Ctrl+C";
        }
      });
      block.prepend(button);
    });
  }

  metrics.forEach((metric, index) => byId("metric").append(make("option", { value: index, textContent: metric.name })));
  const telling = metrics.findIndex((metric) => modules.some((module) => heat(metric, metric.of(module.rows)) > 0));
  state.metric = metrics.length ? Math.max(0, telling) : null;
  byId("metric").value = state.metric;
  byId("colours").hidden = !metrics.length;
  makeMap();
  makeHead();
  listen();
  select(null);
})();
