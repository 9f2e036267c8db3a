"use strict";
(() => {
  const valueOf = (row, column) => row.children[column].textContent.trim();
  const numberOf = (text) => Number(text.replace(/[,%\s]/g, ""));

  function sortBy(table, column, header) {
    const isAscending = header.getAttribute("aria-sort") === "descending"
      || (!header.hasAttribute("aria-sort") && !header.classList.contains("number"));
    for (const other of table.tHead.rows[0].children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    const isNumeric = header.classList.contains("number");
    const sign = isAscending ? 1 : -1;
    rows.sort((one, two) => {
      const [first, second] = [valueOf(one, column), valueOf(two, column)];
      if (!isNumeric) return sign * first.localeCompare(second, "en");
      const [a, b] = [numberOf(first), numberOf(second)];
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return sign * (a - b);
    });
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].children].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sortBy(table, column, header));
      header.replaceChildren(button);
    });
  }

  const gallery = document.querySelectorAll("#gallery .example");
  function countShown() {
    const count = document.getElementById("shown");
    if (!count) return;
    const shown = [...gallery].filter((example) => !example.hidden).length;
    count.textContent = `${shown} of ${gallery.length} shown`;
  }

  function applyFilters() {
    const hidden = new Set();
    for (const select of document.querySelectorAll("select[data-filter], select[data-filter-right]")) {
      const key = select.dataset.filter ? "type" : "right";
      for (const one of document.querySelectorAll(select.dataset.filter || select.dataset.filterRight)) {
        if (select.value && one.dataset[key] !== select.value) hidden.add(one);
      }
    }
    for (const one of document.querySelectorAll("[data-type]")) one.hidden = hidden.has(one);
    countShown();
  }

  for (const select of document.querySelectorAll("select")) select.addEventListener("change", applyFilters);
  applyFilters();

  // On a phone the cards are folded; a printer gets all of them.
  const cards = document.querySelectorAll("#gallery details");
  const phone = matchMedia("(max-width: 600px)");
  const fold = () => { for (const card of cards) card.open = !phone.matches; };
  phone.addEventListener("change", fold);
  addEventListener("beforeprint", () => { for (const card of cards) card.open = true; });
  addEventListener("afterprint", fold);
  fold();

  const boxes = document.querySelectorAll(".wide");
  function hint() {
    for (const box of boxes) {
      const ways = [];
      if (box.scrollWidth > box.clientWidth + 1) ways.push("sideways \u2192");
      if (box.scrollHeight > box.clientHeight + 1) ways.push("down \u2193");
      const next = box.nextElementSibling;
      const line = next && next.classList.contains("hint") ? next : document.createElement("p");
      line.className = "hint";
      line.textContent = ways.length ? `scroll ${ways.join(" and ")} for more` : "";
      line.hidden = !ways.length;
      if (line !== next) box.after(line);
    }
  }
  addEventListener("resize", hint);
  hint();

  document.getElementById("gallery")?.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-overlay]");
    if (!button) return;
    const overlay = button.closest(".example").querySelector(".overlay");
    overlay.hidden = !button.dataset.overlay;
    if (button.dataset.overlay) overlay.src = button.dataset.overlay;
    for (const other of button.parentElement.children) other.removeAttribute("aria-pressed");
    button.setAttribute("aria-pressed", "true");
  });
})();
