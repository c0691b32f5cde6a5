"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const titles = { before: "Before", now: data.before ? "After" : "" };
  const byId = (id) => document.getElementById(id);
  const grids = byId("grids"), details = byId("details");
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`);
  let opened = null; // the cell whose probes are shown

  const element = (name, text, properties = {}) =>
    Object.assign(document.createElement(name), { textContent: text }, properties);
  const escaped = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt()};`);

  // The places of a row's checks, by destination.
  function destinations(row) {
    const found = new Map();
    row.checks.forEach((check, place) => {
      if (!found.has(check.to)) found.set(check.to, []);
      found.get(check.to).push(place);
    });
    return found;
  }

  function judged(matrix, line, places) {
    const seen = places.map((place) => line.seen[place]).filter((place) => place !== null);
    const wrong = seen.map((place) => matrix.outcomes[place]).filter((outcome) => !outcome.met);
    const state = !seen.length ? "none" : !wrong.length ? "ok" : wrong.length < seen.length ? "some" : "bad";
    const said = [...new Set(wrong.map((outcome) => outcome.outcome))].join(", ");
    const met = seen.length - wrong.length;
    const words = seen.length ? `${met} of ${seen.length} as expected${said && `: ${said}`}` : "not asked";
    return { state, words, sign: state === "some" ? `${met}/${seen.length}` : "" };
  }

  // In a grid that does not fit the window, what fails must not be outside of it.
  function worstFirst(name, sources, targets) {
    const bySource = new Map(), byTarget = new Map();
    const count = (counts, end) => counts.set(end, (counts.get(end) || 0) + 1);
    for (const matrix of [data.before, data.now]) {
      const row = matrix?.rows[name];
      for (const [source, line] of Object.entries(row?.sources || {})) {
        line.seen.forEach((seen, place) => {
          if (seen === null || matrix.outcomes[seen].met) return;
          count(bySource, source);
          count(byTarget, row.checks[place].to);
        });
      }
    }
    const sorted = (ends, counts) => ends.sort(([one], [other]) => (counts.get(other) || 0) - (counts.get(one) || 0));
    return [sorted(sources, bySource), sorted(targets, byTarget)];
  }

  function grid(when, name) {
    const matrix = data[when], row = matrix.rows[name];
    const figure = element("figure", "");
    if (titles[when]) figure.append(element("figcaption", titles[when]));
    if (!row) {
      figure.append(element("p", "This row was not measured."));
      return figure;
    }
    let targets = [...destinations(row)], sources = Object.entries(row.sources);
    const most = Math.max(targets.length, sources.length);
    const size = most <= 12 ? "large" : most <= 40 ? "medium" : "small";
    if (size === "small") [sources, targets] = worstFirst(name, sources, targets);
    const signs = { ok: "✓", some: "~", bad: "✕", none: "·", ...(size === "small" && { ok: "", none: "" }) };
    const upright = size !== "large" || targets.length > 6;
    const title = escaped(`${name} ${titles[when]}`);
    const parts = [
      `<table class="heat ${size}" role="grid" aria-label="${title}" aria-describedby="heat-help">`,
      '<thead><tr><td class="corner">from ↓ to →</td>',
    ];
    for (const [target] of targets) {
      parts.push(`<th scope="col"><span${upright ? ' class="upright"' : ""}>${escaped(target)}</span></th>`);
    }
    parts.push("</tr></thead><tbody>");
    for (const [source, line] of sources) {
      parts.push(`<tr><th scope="row">${escaped(source)}</th>`);
      for (const [target, places] of targets) {
        const cell = judged(matrix, line, places);
        const sign = (size === "large" && cell.sign) || signs[cell.state];
        // Forty thousand labels would take longer than all else: where there are many, a cell gets its own when reached.
        const label = size === "small" ? "" : ` aria-label="${escaped(`${source} to ${target}, ${cell.words}`)}"`;
        parts.push(`<td role="gridcell" tabindex="-1" class="${cell.state}"${label}>${sign}</td>`);
      }
      parts.push("</tr>");
    }
    const holder = element("div", "", { className: "window" });
    holder.innerHTML = parts.join("") + "</tbody></table>";
    const table = holder.firstChild;
    Object.assign(table.dataset, { when, name });
    const first = table.querySelector("td.bad, td.some") || table.querySelector("td[role]");
    first.tabIndex = 0;
    label(first);
    figure.append(holder);
    return figure;
  }

  function failures(when, name) {
    const row = data[when]?.rows[name];
    return row ? row.total - row.ok : 0;
  }

  function draw() {
    const when = data.before ? chosen("when").value : "now", name = chosen("row").value;
    const shown = when === "both" ? ["before", "now"] : [when];
    grids.replaceChildren(...shown.map((one) => grid(one, name)));
    for (const input of document.querySelectorAll("input[name=row]")) {
      const count = failures(shown[0], input.value);
      input.nextElementSibling.querySelector("b").textContent = count ? ` ✕ ${count}` : "";
    }
    close(false);
  }

  function observations(when, name, source, target) {
    const matrix = data[when], row = matrix?.rows[name], line = row?.sources[source];
    if (!line) return [];
    const places = (destinations(row).get(target) || []).filter((place) => line.seen[place] !== null);
    if (!places.length) return [];
    const table = element("table", "");
    const head = table.createTHead().insertRow();
    for (const title of ["Probe", "Outcome", "Round trip"]) head.append(element("th", title, { scope: "col" }));
    const body = table.createTBody(), walks = [];
    for (const place of places) {
      const check = row.checks[place], outcome = matrix.outcomes[line.seen[place]], rtt = line.rtt_ms[place];
      const cells = body.insertRow();
      const asked = cells.insertCell(), saw = cells.insertCell(), took = cells.insertCell();
      asked.append(check.port ? `${check.protocol}/${check.port}` : check.protocol);
      asked.append(element("small", [check.address, check.pod || check.service].filter(Boolean).join(", ")));
      const className = `state ${outcome.met ? "ok" : "bad"}`;
      saw.append(element("span", `${outcome.met ? "✓" : "✕"} ${outcome.outcome}`, { className }));
      const expected = check.expect === "ok" ? "" : `expected ${check.expect}`;
      saw.append(element("small", [outcome.detail, expected].filter(Boolean).join("; ")));
      took.className = "num";
      took.append(rtt === null ? "–" : `${rtt} ms`);
      const same = (walk) => ["to", "protocol", "port"].every((key) => walk[key] === check[key]);
      const walk = data.walks[when].find((walk) => walk.row === name && walk.source === source && same(walk));
      if (walk) walks.push(...hops(walk));
    }
    const from = line.pod ? `from pod ${line.pod}` : "from the host";
    return [element("h4", [titles[when], from].filter(Boolean).join(", ")), table, ...walks];
  }

  // The way of a failing probe's packet, by what was gathered.
  function hops(walk) {
    const list = element("ol", "", { className: "hops" });
    for (const hop of walk.hops) {
      const item = element("li", "", { className: hop.verdict });
      const sign = { drops: "✕ drops", rejects: "✕ rejects", unknown: "? not known" }[hop.verdict];
      item.append(element("b", `${hop.node} ${hop.place}`), ...(sign ? [" ", element("span", sign)] : []));
      item.append(element("small", hop.said));
      list.append(item);
    }
    const seen = element("p", `Seen: ${walk.saw}, ${walk.agreement}.`, { className: walk.agrees === false ? "against" : "muted" });
    return [element("h5", `The way of ${walk.packet}, by what was gathered`), list, seen];
  }

  function ends(cell) {
    const head = cell.closest("table").tHead.rows[0];
    return [cell.parentNode.cells[0].textContent, head.cells[cell.cellIndex].textContent];
  }

  function label(cell) {
    const [source, target] = ends(cell), { when, name } = cell.closest("table").dataset;
    const row = data[when].rows[name];
    const { words } = judged(data[when], row.sources[source], destinations(row).get(target));
    cell.setAttribute("aria-label", `${source} to ${target}, ${words}`);
  }

  function open(cell) {
    const table = cell.closest("table"), [source, target] = ends(cell);
    opened?.removeAttribute("aria-selected");
    opened = cell;
    cell.setAttribute("aria-selected", "true");
    byId("details-title").textContent = `${source} → ${target}`;
    const shown = ["before", "now"].flatMap((when) => observations(when, table.dataset.name, source, target));
    byId("details-body").replaceChildren(...(shown.length ? shown : [element("p", "Nothing was asked here.")]));
    details.hidden = false;
    byId("details-title").focus({ preventScroll: false });
  }

  function close(back = true) {
    details.hidden = true;
    opened?.removeAttribute("aria-selected");
    if (back && opened) opened.focus();
    opened = null;
  }

  function move(cell, key) {
    const row = cell.parentNode, rows = row.parentNode.rows, last = row.cells.length - 1;
    const to = {
      ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -last], End: [0, last],
      PageUp: [-10, 0], PageDown: [10, 0],
    }[key];
    if (!to) return false;
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    const down = clamp(row.sectionRowIndex + to[0], 0, rows.length - 1), across = clamp(cell.cellIndex + to[1], 1, last);
    const next = rows[down].cells[across];
    label(next);
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    return true;
  }

  grids.addEventListener("click", (event) => {
    const cell = event.target.closest("td[role]");
    if (cell) open(cell);
  });
  grids.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td[role]");
    if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") open(cell);
    else if (!move(cell, event.key)) return;
    event.preventDefault();
  });
  details.addEventListener("keydown", (event) => event.key === "Escape" && close());
  byId("details-close").addEventListener("click", () => close());

  for (const command of document.querySelectorAll(".command")) {
    const button = element("button", "Copy", { type: "button" });
    button.addEventListener("click", async () => {
      const text = command.querySelector("code");
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
    });
    command.append(button);
  }

  const names = Object.keys(data.now.rows);
  if (names.length) {
    const worst = (when) => names.find((name) => failures(when, name));
    const first = worst("now") || worst("before") || names[0];
    const fits = Object.keys(data.now.rows[first].sources).length <= 8;
    for (const input of document.querySelectorAll("input[name=row]")) input.checked = input.value === first;
    for (const input of document.querySelectorAll("input[name=when]")) {
      input.checked = input.value === (fits ? "both" : worst("now") ? "now" : "before");
    }
    byId("heat").addEventListener("change", draw);
    byId("heat").hidden = false;
    draw();
  }
})();
