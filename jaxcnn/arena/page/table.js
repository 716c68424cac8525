// Sorting and filtering a table, whose cells have what they are sorted by in data-value.

// Sorts rows by a column; missing values come last either way.
function sortRows(table, index, descending) {
  const body = table.tBodies[0];
  const value = (row) => row.cells[index].dataset.value;
  const numeric = table.tHead.rows[0].cells[index].dataset.sort !== "text";
  const rows = [...body.rows].filter((row) => !row.classList.contains("detail"));
  rows.sort((one, other) => {
    const a = value(one), b = value(other);
    if (!numeric) return (descending ? -1 : 1) * (a < b ? -1 : a > b ? 1 : 0);
    if (a === "" || b === "") return (a === "") - (b === "");
    return (descending ? b - a : a - b);
  });
  body.append(...rows);
}

// Makes the titles of the columns buttons that sort by them, the other way at the second click.
function makeSortable(table, sorted) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.dataset.sort === "descending" ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = before === first ? other : first;
      for (const one of heads) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      sortRows(table, index, order === "descending");
      sorted();
    });
  });
}

// Shows the rows whose names have one of the words in them, and says how many these are.
function makeFilter(section, table, filtered) {
  const input = section.querySelector("input[type=search]");
  const status = section.querySelector("[role=status]");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("detail"));
    for (const row of rows) {
      const name = row.cells[0].dataset.value.toLowerCase();
      row.hidden = words.length > 0 && !words.some((word) => name.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    status.textContent = words.length ? `${shown} of ${rows.length} optimizers` : "";
    filtered();
  });
}
