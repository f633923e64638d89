"use strict";
// Sorting by the columns' heads, everything open in print, the data as a file. The page is whole without it.
(() => {
  const table = document.getElementById("sites");
  if (table) {
    const body = table.tBodies[0];
    let current = "order", falling = false;
    for (const head of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const key = head.dataset.sort;
        falling = key === current ? !falling : key !== "order";
        current = key;
        const sign = falling ? -1 : 1;
        const rows = [...body.rows].sort((a, b) =>
          sign * (Number(a.dataset[key]) - Number(b.dataset[key])) || Number(a.dataset.order) - Number(b.dataset.order));
        body.append(...rows);
        for (const other of table.querySelectorAll("th[data-sort]")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      });
    }
  }
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
  const place = document.getElementById("save");
  const save = document.createElement("button");
  save.type = "button";
  save.textContent = "save them";
  save.addEventListener("click", () => {
    const text = JSON.stringify(JSON.parse(document.getElementById("report").textContent), null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  place.append(": ", save);
})();
