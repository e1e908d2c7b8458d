// The script of a flame graph. It stands inside the SVG that it belongs to and touches nothing outside of it, so that
// several graphs can stand in one page. Without it the SVG still shows the folded stacks at full width.
(() => {
  "use strict";
  const svg = document.currentScript.closest("svg");
  const SVG = "http://www.w3.org/2000/svg", HTML = "http://www.w3.org/1999/xhtml";
  const data = JSON.parse(svg.querySelector("metadata").textContent);
  const ROW = data.row, TOP = data.top, CHARACTER = 6.7, NARROWEST = 0.4;
  const make = (space, name, attributes = {}, parent = null, text = null) => {
    const element = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };

  // Nodes come depth first, each with the number of its children. A stack of a long chain is thousands of frames deep:
  // nothing here recurses.
  const column = (runs) => runs.flatMap((value, i) => i % 2 ? [] : new Array(runs[i + 1]).fill(value));
  const unpack = (packed) => {
    const view = { names: packed.names };
    for (const key of ["samples", "self", "children", "turns", "most", "before"]) view[key] = column(packed[key]);
    const open = [];
    let root = null;
    view.names.forEach((name, i) => {
      while (open.length && open.at(-1).missing === 0) open.pop();
      const parent = open.at(-1) ?? null;
      const node = { name: data.names[name], samples: view.samples[i], self: view.self[i], parent, depth: open.length,
        turns: view.turns[i], most: view.most[i], before: view.before[i], children: [], missing: view.children[i] };
      if (parent) { parent.children.push(node); parent.missing--; } else root = node;
      open.push(node);
    });
    return root;
  };
  const trees = {};
  const tree = (name) => trees[name] ??= unpack(data.views[name]);

  let view = "folded", zoomed = tree(view), pattern = null, shown = new Map();
  const frames = svg.querySelector(".frames"), details = svg.querySelector(".details");
  const percent = (part, whole) => `${(100 * part / whole).toFixed(2)} %`;

  const controls = make(HTML, "div", { class: "controls" },
    make(SVG, "foreignObject", { x: 0, y: TOP - 58, width: "100%", height: 30 }, svg));
  const search = make(HTML, "input", { type: "search", placeholder: "Search ( / )", "aria-label": "Search frames" }, controls);
  const button = (text, label, action) => {
    const element = make(HTML, "button", { type: "button", "aria-label": label }, controls, text);
    element.addEventListener("click", action);
    return element;
  };
  const reset = button("Reset zoom", "Reset zoom", () => zoom(tree(view)));
  reset.classList.add("reset");
  const other = button("", "Fold recursion or show plain stacks", () => show(view === "folded" ? "plain" : "folded"));
  other.classList.add("view");
  const matched = make(HTML, "span", { class: "matched", role: "status", "aria-live": "polite" }, controls);

  const describe = (node) => {
    const total = tree(view).samples;
    let text = `${node.name}: ${node.samples.toLocaleString("en")} samples, ${percent(node.samples, total)}`;
    if (node.self) text += `, itself ${percent(node.self, total)}`;
    if (node.turns) text += `, ${node.turns.toLocaleString("en")} turns on average, ${node.most.toLocaleString("en")} at most`;
    if (data.before) text += `; before ${percent(node.before, data.before)}`;
    return text;
  };
  const hash = (text) => {
    let value = 2166136261;
    for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 16777619) >>> 0;
    return value;
  };
  const colour = (node) => {
    if (pattern && matches(node)) return "var(--match)";
    if (data.before) {
      const grown = node.samples / tree(view).samples - node.before / data.before;
      const strength = Math.min(1, Math.sqrt(Math.abs(grown)) * 1.4);
      return `hsl(${grown > 0 ? 8 : 215} ${Math.round(85 * strength)}% ${Math.round(88 - 28 * strength)}%)`;
    }
    const spread = hash(node.name) % 24;
    if (node.turns) return `hsl(${275 + spread} 45% ${68 + spread % 9}%)`;
    if (node.name.startsWith("[")) return `hsl(220 6% ${72 + spread % 9}%)`;
    if (node.name.endsWith("_[k]")) return `hsl(${195 + spread} 45% ${66 + spread % 9}%)`;
    return `hsl(${18 + spread} 85% ${62 + spread % 11}%)`;
  };
  const matches = (node) => node.depth > 0 && pattern.test(node.name);
  const label = (node, width) => {
    const room = Math.floor((width - 5) / CHARACTER);
    const text = node.turns ? node.name.replace("\u21bb", `\u21bb ${node.turns}\u00d7`) : node.name;
    return room < 3 ? "" : text.length <= room ? text : `${text.slice(0, room - 1)}\u2026`;
  };

  const draw = (node, x, width, faded) => {
    const y = TOP + node.depth * ROW;
    const text = describe(node);
    const group = make(SVG, "g", { class: faded ? "frame faded" : "frame", role: "button", tabindex: -1,
      "aria-label": text, "data-name": node.name });
    make(SVG, "title", {}, group, text);
    make(SVG, "rect", { x, y, width: Math.max(width - 0.4, 0.2), height: ROW - 1, rx: 1.5, style: `fill: ${colour(node)}` }, group);
    const words = label(node, width);
    if (words) make(SVG, "text", { x: x + 3, y: y + ROW - 5 }, group, words);
    frames.append(group);
    shown.set(group, node);
    node.group = group;
  };
  const render = (focus = false) => {
    const width = svg.clientWidth || svg.getBoundingClientRect().width || 1200;
    frames.replaceChildren();
    shown = new Map();
    const path = [];
    for (let node = zoomed.parent; node; node = node.parent) path.unshift(node);
    for (const node of path) draw(node, 0, width, true);
    let deepest = zoomed.depth;
    const left = [[zoomed, 0, width]];
    while (left.length) {
      const [node, x, wide] = left.pop();
      draw(node, x, wide, false);
      deepest = Math.max(deepest, node.depth);
      let at = x;
      for (const child of node.children) {
        const part = wide * child.samples / node.samples;
        if (part >= NARROWEST) left.push([child, at, part]);
        at += part;
      }
    }
    const height = TOP + (deepest + 1) * ROW + 8;
    svg.setAttribute("height", height);
    svg.querySelector(".ground").setAttribute("height", height);
    reset.disabled = zoomed === tree(view);
    other.textContent = view === "folded" ? "Plain stacks" : "Fold recursion";
    zoomed.group.setAttribute("tabindex", 0);
    if (focus) zoomed.group.focus();
    report();
  };
  const zoom = (node, focus = false) => { zoomed = node; render(focus); details.textContent = describe(node); };
  const show = (name) => { view = name; svg.dataset.view = name; zoom(tree(name)); };

  // The share of samples in matching frames, each sample once however many of its frames match.
  const report = () => {
    if (!pattern) { matched.textContent = ""; return; }
    let found = 0;
    const left = [zoomed];
    while (left.length) {
      const node = left.pop();
      if (matches(node)) found += node.samples; else left.push(...node.children);
    }
    matched.textContent = `Matched: ${percent(found, zoomed.samples)}`;
  };
  search.addEventListener("input", () => {
    try {
      pattern = search.value ? new RegExp(search.value, "i") : null;
    } catch {
      pattern = new RegExp(search.value.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "i");
    }
    render();
  });

  const frameOf = (event) => event.target.closest?.(".frame");
  frames.addEventListener("click", (event) => { const group = frameOf(event); if (group) zoom(shown.get(group)); });
  for (const kind of ["mouseover", "focusin"])
    frames.addEventListener(kind, (event) => { const group = frameOf(event); if (group) details.textContent = describe(shown.get(group)); });
  svg.addEventListener("keydown", (event) => {
    if (event.target === search) {
      if (event.key !== "Escape") return;
      // The first one leaves the search, the next one the frame that is enlarged.
      if (search.value || pattern) { search.value = ""; pattern = null; render(); }
      else zoom(tree(view), true);
      return;
    }
    if (event.key === "/") { search.focus(); event.preventDefault(); return; }
    if (event.key === "Escape") { zoom(tree(view), true); return; }
    const node = shown.get(frameOf(event));
    if (!node) return;
    const widest = node.children.filter((child) => shown.has(child.group)).sort((a, b) => b.samples - a.samples)[0];
    const sisters = node.parent ? node.parent.children.filter((child) => shown.has(child.group)) : [node];
    const at = sisters.indexOf(node);
    const target = { ArrowDown: widest, ArrowUp: node.parent, ArrowLeft: sisters[at - 1], ArrowRight: sisters[at + 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") zoom(node, true);
    else if (target) { node.group.setAttribute("tabindex", -1); target.group.setAttribute("tabindex", 0); target.group.focus(); }
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  });

  svg.removeAttribute("viewBox");
  svg.setAttribute("width", "100%");
  svg.dataset.view = view;
  let width = 0;
  new ResizeObserver(() => { if (svg.clientWidth !== width) { width = svg.clientWidth; render(); } }).observe(svg);
  render();
})();
