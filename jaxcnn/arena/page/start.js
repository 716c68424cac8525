// Brings the tables to life: tabs for the tracks, sorting, filtering, and the panel of a track.

const data = JSON.parse(document.getElementById("data").textContent);
const wide = matchMedia("(min-width: 72rem)");

function startTrack(section) {
  const track = data.tracks[Number(section.dataset.track)];
  const table = section.querySelector(".ranking"), body = table.tBodies[0];
  const scroll = section.querySelector(".scroll"), panel = section.querySelector("aside");
  let pinned = null;
  const optimizerOf = (row) => track.optimizers[Number(row.dataset.row)];
  const detail = made("tr", made("td", [], { colspan: table.tHead.rows[0].cells.length }), { class: "detail" });

  // Beside the table, or on a small screen below the chosen row.
  function place() {
    panel.hidden = !pinned || pinned.hidden;
    if (wide.matches) {
      detail.remove();
      section.querySelector(".board").append(panel);
    } else {
      detail.cells[0].append(panel);
      detail.hidden = panel.hidden;
      if (pinned) pinned.after(detail);
      panel.style.setProperty("--visible", `${scroll.clientWidth}px`);
    }
  }

  function pin(row) {
    if (pinned) pinned.removeAttribute("aria-current");
    pinned = row === pinned && !wide.matches ? null : row;
    if (pinned) {
      pinned.setAttribute("aria-current", "true");
      fillPanel(panel, track, optimizerOf(pinned), optimizerOf(pinned));
    }
    place();
  }

  for (const row of [...body.rows]) {
    row.tabIndex = 0;
    row.addEventListener("click", () => { if (!String(getSelection())) pin(row); });
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(row); }
    });
    row.addEventListener("pointerenter", (event) => {
      if (wide.matches && pinned && event.pointerType === "mouse") {
        fillPanel(panel, track, optimizerOf(row), optimizerOf(pinned));
      }
    });
  }
  body.addEventListener("pointerleave", () => {
    if (wide.matches && pinned) fillPanel(panel, track, optimizerOf(pinned), optimizerOf(pinned));
  });
  makeSortable(table, place);
  makeFilter(section, table, place);
  section.querySelector(".controls").hidden = false;
  wide.addEventListener("change", () => (wide.matches && !pinned ? pin(body.rows[0]) : place()));
  addEventListener("resize", () => place());
  if (wide.matches) pin(body.rows[0]);
}

// Shows the track that the address names, or the first one.
function showTrack() {
  const sections = [...document.querySelectorAll(".track")];
  const wanted = decodeURIComponent(location.hash.slice(1));
  const shown = sections.find((one) => one.id === wanted) || sections[0];
  for (const one of sections) one.hidden = one !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  dispatchEvent(new Event("resize"));
}

for (const section of document.querySelectorAll("[data-track]")) startTrack(section);
for (const table of document.querySelectorAll(".overall")) makeSortable(table, () => {});
showTrack();
addEventListener("hashchange", showTrack);
document.documentElement.dataset.complete = "";
