"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const number = (value) => value.toLocaleString("en");
  const bytes = (count) => {
    if (!count) return "";
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = 0;
    while (count >= 999.5 && power < units.length - 1) { count /= 1024; power += 1; }
    return `${count.toFixed(power === 0 ? 0 : count < 9.995 ? 2 : count < 99.95 ? 1 : 0)} ${units[power]}`;
  };
  const seconds = (value) => {
    if (value === undefined) return "";
    if (value >= 3600) return `${Math.floor(Math.round(value / 60) / 60)} h ${String(Math.round(value / 60) % 60).padStart(2, "0")} min`;
    if (value >= 100) return `${Math.floor(Math.round(value) / 60)} min ${String(Math.round(value) % 60).padStart(2, "0")} s`;
    if (value >= 1 || value === 0) return `${value.toFixed(value < 9.995 ? 2 : 1)} s`;
    return `${(value * 1000).toFixed(value < 0.09995 ? 1 : 0)} ms`;
  };
  const million = (value) => (value === undefined ? undefined : value * 1e6);

  // What a column is called, what it shows, and what it is sorted by; numbers fall, names rise.
  const columns = [
    { name: "#", number: true, show: (row) => String(row.rank), by: (row) => -row.rank, css: "rank" },
    { name: "chain", by: (row) => row.path },
    { name: "reads fall", by: (row) => row.passed, chart: true },
    { name: "layers", number: true, show: (row) => number(row.layers), by: (row) => row.layers },
    { name: "passed", number: true, show: (row) => row.passed.toFixed(1), by: (row) => row.passed },
    { name: "CPU", number: true, show: (row) => seconds(million(row.cpu)), by: (row) => row.cpu || 0 },
    { name: "CPU back", number: true, show: (row) => seconds(row.cpuBack), by: (row) => row.cpuBack || 0 },
    { name: "memory back", number: true, show: (row) => bytes(row.memoryBack), by: (row) => row.memoryBack || 0 },
    { name: "unreadable", number: true, show: (row) => bytes(row.dead), by: (row) => row.dead || 0 },
    { name: "to do", by: (row) => row.verb || "~" },
  ];
  data.rows.forEach((row, index) => { row.rank = index + 1; row.key = `${row.path} ${row.host} ${row.uses || ""}`.toLowerCase(); });

  const make = (name, css, text) => {
    const element = document.createElement(name);
    if (css) element.className = css;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const draw = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]);
    return element;
  };

  // A bar for each range of depths; over it, where there are several surveys, a line for the chain's length.
  const chart = (row) => {
    const bins = data.bins.length, step = 96 / bins, falls = row.falls || [];
    const largest = Math.max(1, ...falls);
    const said = falls.map((part, bin) => (part ? `${data.bins[bin]}: ${(part / 10).toFixed(1)} %` : "")).filter(Boolean).join(", ");
    const svg = draw("svg", { class: "chart", viewBox: "0 0 96 28", role: "img", "aria-label": said ? `layers passed: ${said}` : "no content" });
    const title = draw("title", {});
    title.textContent = said ? `layers passed: ${said}` : "no content";
    svg.append(title, draw("rect", { class: "ground", x: 0, y: 27, width: 96, height: 1 }));
    falls.forEach((part, bin) => {
      if (!part) return;
      const height = Math.max(1.5, 25 * part / largest);
      svg.append(draw("rect", { x: (bin * step + step * 0.1).toFixed(2), y: (27 - height).toFixed(2), width: (step * 0.8).toFixed(2), height: height.toFixed(2) }));
    });
    if (row.lengths && row.lengths.length > 1) {
      const most = Math.max(1, ...row.lengths), wide = 96 / (row.lengths.length - 1);
      svg.append(draw("path", { d: row.lengths.map((length, at) => `${at ? "L" : "M"}${(at * wide).toFixed(1)} ${(26 - 24 * length / most).toFixed(1)}`).join("") }));
    }
    return svg;
  };

  const named = (row) => {
    const cell = make("td", "name");
    cell.append(make("code", "", row.path));
    const small = make("span", "small");
    if (row.on) small.append(make("span", "badge on", "in use"), " ");
    if (row.broken) small.append(make("span", "badge bad", "broken"), " ");
    if (row.danger) small.append(make("span", row.passedLimit ? "badge bad" : "badge near", row.passedLimit ? "past a limit" : "near a limit"), " ");
    small.append([row.uses, row.held, row.host].filter(Boolean).join(", "));
    cell.append(small);
    return cell;
  };

  const details = (row) => {
    const line = make("tr", "more-of"), cell = make("td");
    cell.colSpan = columns.length;
    if (row.command) {
      const command = make("p", "command"), copy = make("button", "copy", "Copy");
      copy.type = "button";
      copy.addEventListener("click", () => {
        navigator.clipboard.writeText(row.command).then(() => { copy.textContent = "Copied"; }, () => { copy.textContent = "Select it by hand"; });
      });
      command.append(make("code", "", row.command), copy);
      cell.append(command);
    }
    const said = [row.why, row.danger, row.broken, ...(row.findings || [])];
    if (row.cpu !== undefined) said.push(`a million reads of 4 KiB take ${seconds(million(row.cpu))} of CPU time, between ${seconds(million(row.low))} and ${seconds(million(row.high))} in nine of ten cases; QEMU's memory for the chain: ${bytes(row.memory)}`);
    if (row.lengths) said.push(`${(row.perDay || 0).toFixed(1)} layers${row.bytesPerDay > 0 ? ` and ${bytes(row.bytesPerDay)}` : ""} more a day`);
    if (row.frees) said.push(`frees up to ${bytes(row.frees)}`);
    if (row.disk) said.push(`its own files take ${bytes(row.disk)}`);
    for (const sentence of new Set(said.filter(Boolean))) cell.append(make("p", "", sentence));
    line.append(cell);
    return line;
  };

  const body = document.querySelector("#table tbody");
  const rowOf = (row) => {
    const line = make("tr");
    for (const column of columns) {
      let cell;
      if (column.name === "chain") cell = named(row);
      else {
        cell = make("td", [column.number ? "num" : "", column.css || ""].join(" ").trim());
        if (column.chart) cell.append(chart(row));
        else if (column.show) cell.textContent = column.show(row);
        else {
          const open = make("button", "open", row.verb || "look");
          open.type = "button";
          open.setAttribute("aria-expanded", "false");
          open.addEventListener("click", () => {
            const is = open.getAttribute("aria-expanded") === "true";
            open.setAttribute("aria-expanded", String(!is));
            if (is) line.nextSibling.remove(); else line.after(details(row));
          });
          cell.append(open);
        }
        if (cell.textContent || column.chart) cell.dataset.name = column.name;
      }
      line.append(cell);
    }
    return line;
  };

  const state = { column: 0, up: false, shown: PAGE };
  const wanted = {
    "": () => true, todo: (row) => row.verb, on: (row) => row.on, danger: (row) => row.danger, broken: (row) => row.broken,
  };
  const find = document.getElementById("find"), only = document.getElementById("only"), sort = document.getElementById("sort");
  const more = document.getElementById("more"), count = document.getElementById("count");
  const show = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean), fits = wanted[only.value];
    const rows = data.rows.filter((row) => fits(row) && words.every((word) => row.key.includes(word)));
    const by = columns[state.column].by, sign = state.up ? 1 : -1;
    rows.sort((a, b) => {
      const x = by(a), y = by(b);
      return (x < y ? -sign : x > y ? sign : 0) || a.rank - b.rank;
    });
    body.replaceChildren(...rows.slice(0, state.shown).map(rowOf));
    more.hidden = rows.length <= state.shown;
    count.textContent = `${number(Math.min(rows.length, state.shown))} of ${number(rows.length)}`;
    heads.forEach((head, at) => {
      if (at === state.column) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    sort.value = String(state.column);
  };
  const choose = (column) => {
    const rises = !columns[column].number && !columns[column].chart;
    state.up = column === state.column ? !state.up : rises;
    state.column = column;
    state.shown = PAGE;
    show();
  };
  const heads = [...document.querySelectorAll("#table thead th")];
  heads.forEach((head, column) => {
    const button = make("button", "", head.textContent);
    button.type = "button";
    button.addEventListener("click", () => choose(column));
    head.replaceChildren(button);
    const option = make("option", "", column ? columns[column].name : "what comes first");
    option.value = String(column);
    sort.append(option);
  });
  sort.addEventListener("change", () => { if (Number(sort.value) !== state.column) choose(Number(sort.value)); });
  let later;
  find.addEventListener("input", () => { clearTimeout(later); later = setTimeout(() => { state.shown = PAGE; show(); }, 120); });
  only.addEventListener("change", () => { state.shown = PAGE; show(); });
  more.addEventListener("click", () => { state.shown += 4 * PAGE; show(); });
  document.getElementById("tools").hidden = false;
  show();
})();
