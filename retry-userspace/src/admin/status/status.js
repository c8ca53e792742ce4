"use strict";
// Replaces the values of the page by those of /v1/status every two seconds, and draws what happened per second.
(() => {
  const EVERY_MS = 2000;
  const POINTS = 60;
  const ABSENT = "–";
  const byId = (id) => document.getElementById(id);

  // The notations of page.rs, under the same names.
  const seconds = (s) => {
    const whole = Math.round(s);
    if (s <= 0) return "0 s";
    if (s < 1e-3) return `${(s * 1e6).toFixed(1)} µs`;
    if (s < 1) return `${(s * 1e3).toFixed(1)} ms`;
    if (s < 120) return `${s.toFixed(1)} s`;
    if (s < 7200) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  };
  const notation = {
    text: String,
    list: (all) => all.join(", "),
    count: (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ","),
    seconds,
    bytes: (n) => `${(n / 2 ** 20).toFixed(1)} MiB`,
    reasons: (all) => Object.entries(all).map(([name, n]) => `${name} ${notation.count(n)}`).join(", ") || ABSENT,
    up: (is) => (is ? "up" : "down"),
    yes: (is) => (is ? "yes" : "no"),
  };
  const written = (form, value) => (value === null || value === undefined ? ABSENT : notation[form](value));
  const at = (object, path) => path.split(".").reduce((part, name) => part?.[name], object);
  const say = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  const share = (cell, row, head) => {
    const [part, whole] = [row[head.dataset.v], row[head.dataset.of]];
    const value = whole > 0 ? Math.min(part / whole, 1) : 0;
    if (!cell.firstElementChild) {
      const meter = document.createElement("meter");
      meter.setAttribute("aria-label", head.dataset.label);
      cell.replaceChildren(meter, " ", document.createElement("span"));
    }
    cell.firstElementChild.value = value;
    say(cell.lastElementChild, `${(value * 100).toFixed(0)} %`);
  };

  // A table whose rows may come and go. Cells that stay keep their element, so that a reader's place is not lost.
  const fill = (body, rows) => {
    const heads = [...body.parentElement.tHead.rows[0].cells];
    if (rows.length === 0) {
      if (body.rows.length === 1 && body.rows[0].cells.length === 1) {
        say(body.rows[0].cells[0], body.dataset.none);
        return;
      }
      const cell = document.createElement("td");
      cell.colSpan = heads.length;
      cell.textContent = body.dataset.none;
      body.replaceChildren(document.createElement("tr"));
      body.rows[0].append(cell);
      return;
    }
    if (body.rows.length === 1 && body.rows[0].cells.length === 1) body.replaceChildren();
    while (body.rows.length > rows.length) body.lastElementChild.remove();
    rows.forEach((row, number) => {
      let line = body.rows[number];
      if (!line) {
        line = body.insertRow();
        heads.forEach((head, column) => {
          const cell = document.createElement(column === 0 ? "th" : "td");
          if (column === 0) cell.scope = "row";
          if (head.classList.contains("num")) cell.className = "num";
          line.append(cell);
        });
      }
      heads.forEach((head, column) => {
        const cell = line.cells[column];
        if (head.dataset.f === "share") share(cell, row, head);
        else say(cell, written(head.dataset.f, row[head.dataset.v]));
      });
    });
  };

  // What happened per second, by table and row.
  const series = new Map();
  const SVG = "http://www.w3.org/2000/svg";
  const rounded = (rate) => (rate < 10 ? rate.toFixed(1).replace(".0", "") : notation.count(Math.round(rate)));
  const draw = (cell, name, points) => {
    if (!cell.firstElementChild) {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("role", "img");
      svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 20`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.append(document.createElementNS(SVG, "polyline"));
      cell.append(svg);
    }
    const svg = cell.firstElementChild;
    const most = Math.max(...points);
    const scale = most > 0 ? 18 / most : 0;
    const first = POINTS - points.length;
    // The first rate is a line too: it was taken over one interval.
    const drawn = [points[0], ...points];
    const line = drawn.map((rate, i) => `${first + i - 1},${(19 - rate * scale).toFixed(1)}`).join(" ");
    svg.firstElementChild.setAttribute("points", line);
    svg.setAttribute("aria-label", `${name}: ${rounded(points.at(-1))} per second now, at most ${rounded(most)} in the last two minutes`);
  };
  const count = (table, rows, passed) => {
    for (const one of rows) {
      const line = document.querySelector(`section[aria-labelledby="${table}"] tr[data-name="${one.name}"]`);
      if (!line) continue;
      const [name, kernel, daemon, rate, chart] = line.cells;
      say(kernel, notation.count(one.kernel));
      say(daemon, notation.count(one.daemon));
      const key = `${table}.${one.name}`;
      const sum = one.kernel + one.daemon;
      const kept = series.get(key) ?? { points: [] };
      if (kept.sum !== undefined && passed > 0) {
        // Another daemon's counters may begin lower.
        kept.points.push(Math.max(sum - kept.sum, 0) / passed);
        kept.points.splice(0, kept.points.length - POINTS);
        say(rate, rounded(kept.points.at(-1)));
        draw(chart, name.textContent, kept.points);
      }
      kept.sum = sum;
      series.set(key, kept);
    }
  };

  const attend = (all) => {
    const list = byId("list");
    const lines = all.map(({ what, section, link }) => {
      const [line, text, to] = ["li", "span", "a"].map((name) => document.createElement(name));
      text.textContent = what;
      to.textContent = `Runbook: ${section}`;
      to.href = link;
      line.append(text, " ", to);
      return line;
    });
    if (lines.length === 0) {
      const line = document.createElement("li");
      line.className = "fine";
      line.textContent = "Nothing.";
      lines.push(line);
    }
    // A link that has the focus keeps it while nothing has changed.
    const now = lines.map((line) => line.textContent).join("\n");
    if ([...list.children].map((line) => line.textContent).join("\n") !== now) list.replaceChildren(...lines);
  };
  const summary = (number) => {
    if (number === 0) return "nothing needs attention";
    return number === 1 ? "1 thing needs attention" : `${number} things need attention`;
  };

  let last;
  const show = (status, now) => {
    const state = byId("state");
    state.className = status.status;
    say(state, status.status.replaceAll("_", " "));
    // The whole sentence is read out when it changes, and not before.
    say(byId("summary"), summary(status.attention.length));
    document.title = `${status.status} · ${status.instance} · retry-endpoint`;
    for (const element of document.querySelectorAll("[data-v]:not(th)")) {
      say(element, written(element.dataset.f, at(status, element.dataset.v)));
    }
    for (const body of document.querySelectorAll("tbody[data-rows]")) {
      if (body.dataset.rows) fill(body, at(status, body.dataset.rows) ?? []);
    }
    const passed = last === undefined ? 0 : (now - last) / 1000;
    count("nacks", status.nacks, passed);
    count("answers", status.answers, passed);
    attend(status.attention);
    last = now;
  };

  let paused = false;
  const updated = byId("updated");
  const poll = async () => {
    const stop = new AbortController();
    const late = setTimeout(() => stop.abort(), 5000);
    try {
      const answer = await fetch("/v1/status", { cache: "no-store", signal: stop.signal });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      show(await answer.json(), performance.now());
      document.documentElement.classList.remove("stale");
      say(updated, `Updated at ${new Date().toLocaleTimeString()}`);
    } catch {
      if (!document.documentElement.classList.contains("stale")) {
        document.documentElement.classList.add("stale");
        say(byId("summary"), "the daemon does not answer: what stands here is old");
      }
    } finally {
      clearTimeout(late);
    }
  };
  const go = async () => {
    if (!paused && !document.hidden) await poll();
    setTimeout(go, EVERY_MS);
  };
  const pause = byId("pause");
  pause.addEventListener("click", () => {
    paused = !paused;
    say(pause, paused ? "Go on with updates" : "Pause updates");
    if (paused) say(updated, "Updates are paused");
  });
  document.documentElement.classList.add("scripted");
  go();
})();
