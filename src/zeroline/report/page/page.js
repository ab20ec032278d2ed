"use strict";
// Looks into the maps of a page. Reads the JSON element `data`; writes text with textContent alone; asks nothing of anywhere.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FINEST = 28; // cells along a side that a map of pixels begins with

  function floats(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  // blue at -1, white at 0, red at 1
  function colour(share) {
    const place = (Math.max(-1, Math.min(1, share)) / 2 + 0.5) * (data.colours.length - 1);
    const low = Math.floor(place), high = Math.min(low + 1, data.colours.length - 1), part = place - low;
    return data.colours[low].map((c, i) => Math.round(c + (data.colours[high][i] - c) * part));
  }

  function said(value) {
    const size = Math.abs(value);
    const text = size === 0 ? "0" : size >= 1e4 || size < 1e-3 ? value.toExponential(2) : value.toPrecision(3);
    return (value > 0 ? "+" : "") + text;
  }

  // sums over square cells of `side`: what is shown still adds up to the whole
  function summed(values, rows, columns, side) {
    if (side === 1) return { values, rows, columns };
    const height = Math.ceil(rows / side), width = Math.ceil(columns / side), found = new Float64Array(height * width);
    for (let y = 0; y < rows; y++)
      for (let x = 0; x < columns; x++) found[Math.floor(y / side) * width + Math.floor(x / side)] += values[y * columns + x];
    return { values: found, rows: height, columns: width };
  }

  function largest(values) {
    let most = 0;
    for (const value of values) most = Math.max(most, Math.abs(value));
    return most;
  }

  // one tab stop for a list; arrows, Home and End go through it
  function roving(list, items, chosen) {
    let at = 0;
    function go(to, focus) {
      items[at].tabIndex = -1;
      items[at].setAttribute("aria-selected", "false");
      at = Math.max(0, Math.min(items.length - 1, to));
      items[at].tabIndex = 0;
      items[at].setAttribute("aria-selected", "true");
      if (focus) items[at].focus();
      chosen(at);
    }
    items.forEach((item, i) => {
      item.tabIndex = i === 0 ? 0 : -1;
      item.setAttribute("aria-selected", String(i === 0));
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) go(at + step, true);
      else if (event.key === "Home") go(0, true);
      else if (event.key === "End") go(items.length - 1, true);
      else return;
      event.preventDefault();
    });
    const number = (event) => {
      const item = event.target.closest(".word");
      return item ? Number(item.dataset.number) : -1;
    };
    for (const kind of ["mouseover", "click", "focusin"])
      list.addEventListener(kind, (event) => {
        const to = number(event);
        if (to >= 0 && to !== at) go(to, false);
      });
  }

  function chips(list, words) {
    const items = words.map((word, i) => {
      const item = document.createElement("span");
      item.className = "word";
      item.setAttribute("role", "option");
      item.dataset.number = String(i);
      item.textContent = word === "" ? "(empty)" : word;
      return item;
    });
    list.append(...items);
    list.hidden = false;
    return items;
  }

  // relative luminance, as WCAG has it
  function luminance(ink) {
    const [red, green, blue] = ink.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function paint(item, share, opacity) {
    const ink = colour(share);
    item.style.backgroundColor = `rgb(${ink})`;
    item.style.color = luminance(ink) < 0.179 ? "#ffffff" : "#000000"; // whichever has more contrast
    item.style.opacity = opacity === undefined ? "1" : String(opacity);
  }

  document.querySelectorAll("section.viewer").forEach((section) => {
    const told = data.viewers[Number(section.dataset.viewer)];
    const find = (name) => section.querySelector(name);
    const panels = told.panels.map((panel) => ({ ...panel, all: floats(panel.values) }));
    const state = { panel: 0, choice: 0, sign: "both", opacity: 0.85, side: 1, cursor: null };
    const canvas = find("canvas"), stage = find(".stage"), ground = find(".ground"), wordList = find(".words"), choiceList = find(".choices");
    let cells = null, limit = 1, wordItems = [], choiceItems = [];

    function current() {
      const panel = panels[state.panel], [rows, columns] = panel.shape, size = rows * columns;
      return { panel, rows, columns, values: panel.all.subarray(state.choice * size, (state.choice + 1) * size) };
    }

    function kept(value) {
      return state.sign === "both" || (state.sign === "for" ? value > 0 : value < 0) ? value : 0;
    }

    function sides() {
      const { rows, columns } = current(), select = find(".side");
      if (!select) return;
      const possible = [1, 2, 4, 8, 16, 32].filter((side) => side === 1 || side < Math.min(rows, columns));
      select.replaceChildren(...possible.map((side) => new Option(`${side} x ${side}`, side)));
      state.side = possible.find((side) => Math.max(rows, columns) / side <= FINEST) || possible[possible.length - 1];
      select.value = String(state.side);
      find(".sums").hidden = Math.max(rows, columns) <= FINEST;
    }

    function draw() {
      const { panel, rows, columns, values } = current();
      cells = summed(values, rows, columns, wordList ? 1 : state.side);
      limit = cells.values === values ? panel.limits[state.choice] : largest(cells.values) || 1;
      if (wordList) wordItems.forEach((item, i) => paint(item, kept(cells.values[i]) / limit));
      else drawMap();
      const signed = cells.values.some((value) => value < 0);
      find(".scale").hidden = false;
      find(".low").textContent = signed ? said(-limit) : "0";
      find(".high").textContent = said(limit);
      const stops = (signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.5, 1]).map((share) => `rgb(${colour(share)})`);
      find(".ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      const name = find(".panel-name"), slider = find("input.panel");
      if (name) name.textContent = `${panel.label} (${state.panel + 1} of ${panels.length})`;
      if (slider) slider.setAttribute("aria-valuetext", panel.label);
      find(".caption").textContent = [panels.length > 1 || !panel.caption ? "" : panel.label, panel.caption].filter(Boolean).join(": ");
      read();
    }

    function drawMap() {
      canvas.width = cells.columns;
      canvas.height = cells.rows;
      const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(cells.columns, cells.rows);
      for (let i = 0; i < cells.values.length; i++) {
        const share = kept(cells.values[i]) / limit, ink = colour(share);
        image.data.set([...ink, Math.round(255 * state.opacity * Math.min(1, Math.abs(share)) ** 0.7)], 4 * i);
      }
      context.putImageData(image, 0, 0);
      if (state.cursor !== null) {
        const x = state.cursor % cells.columns, y = Math.floor(state.cursor / cells.columns), ink = context.getImageData(x, y, 1, 1).data;
        context.fillStyle = ink[3] > 128 && ink[0] + ink[1] + ink[2] < 400 ? "rgba(255,255,255,.75)" : "rgba(0,0,0,.75)";
        context.fillRect(x, y, 1, 1);
      }
    }

    function read() {
      const line = find(".readout");
      if (state.cursor === null || state.cursor >= cells.values.length) {
        line.textContent = told.choices.length ? `shown: ${told.choices[state.choice]}` : "";
        return;
      }
      const value = cells.values[state.cursor], x = state.cursor % cells.columns, y = Math.floor(state.cursor / cells.columns);
      const cell = state.side > 1 && !wordList ? `${state.side} x ${state.side} ${told.cell}s` : told.cell;
      const where = wordList ? `${told.cell} ${x} "${told.words[x]}"` : `${cell}, row ${y}, column ${x}`;
      const whole = told.total, share = whole ? `, ${((100 * value) / whole).toFixed(1)} % of ${told.unit}` : "";
      const row = told.choices.length ? `${told.choices[state.choice]}: ` : "";
      line.textContent = `${row}${where}: ${said(value)}${share}${kept(value) === value ? "" : " (not drawn: other sign)"}`;
    }

    // what all rows have at one place: the words of a patch
    function across() {
      if (!choiceItems.length) return;
      const panel = panels[state.panel], size = panel.shape[0] * panel.shape[1];
      if (state.cursor === null || state.side !== 1) {
        choiceItems.forEach((item) => paint(item, 0));
        return;
      }
      const found = choiceItems.map((_, i) => panel.all[i * size + state.cursor]), most = largest(found.slice(1)) || 1;
      choiceItems.forEach((item, i) => paint(item, i ? found[i] / most : 0));
    }

    function moveTo(cursor) {
      state.cursor = cursor;
      if (!wordList) drawMap();
      read();
      across();
    }

    if (wordList) {
      wordItems = chips(wordList, told.words);
      roving(wordList, wordItems, moveTo);
    } else {
      stage.hidden = false;
      stage.classList.toggle("bare", !ground);
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        const x = Math.floor(((event.clientX - box.left) / box.width) * cells.columns);
        const y = Math.floor(((event.clientY - box.top) / box.height) * cells.rows);
        const inside = x >= 0 && y >= 0 && x < cells.columns && y < cells.rows;
        if (inside && y * cells.columns + x !== state.cursor) moveTo(y * cells.columns + x);
      });
      canvas.addEventListener("pointerleave", () => document.activeElement !== canvas && moveTo(null));
      canvas.addEventListener("focus", () => state.cursor === null && moveTo(0));
      canvas.addEventListener("blur", () => moveTo(null));
      canvas.addEventListener("keydown", (event) => {
        const x = state.cursor % cells.columns, y = Math.floor(state.cursor / cells.columns);
        const [right, down] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key] || [0, 0];
        if (!right && !down) return;
        event.preventDefault();
        const column = Math.max(0, Math.min(cells.columns - 1, x + right)), row = Math.max(0, Math.min(cells.rows - 1, y + down));
        moveTo(row * cells.columns + column);
      });
      find(".opacity").addEventListener("input", (event) => {
        state.opacity = event.target.value / 100;
        drawMap();
      });
      find(".side").addEventListener("change", (event) => {
        state.side = Number(event.target.value);
        state.cursor = null;
        draw();
      });
      const inColour = find("input.colour");
      if (ground) inColour.addEventListener("change", () => ground.classList.toggle("in-colour", inColour.checked));
      else inColour.parentElement.hidden = true;
    }
    if (choiceList) {
      choiceItems = chips(choiceList, told.choices);
      roving(choiceList, choiceItems, (choice) => {
        state.choice = choice;
        draw();
      });
    }
    section.querySelectorAll("input[type=radio]").forEach((radio) =>
      radio.addEventListener("change", () => {
        state.sign = radio.value;
        draw();
      })
    );
    const slider = find("input.panel");
    if (slider)
      slider.addEventListener("input", () => {
        const before = panels[state.panel].shape;
        state.panel = Number(slider.value);
        if (String(before) !== String(panels[state.panel].shape)) {
          state.cursor = null;
          sides();
        }
        draw();
        across();
      });
    find(".controls").hidden = false;
    sides();
    draw();
    across();
  });

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme;
    const dark = now ? now === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
})();
