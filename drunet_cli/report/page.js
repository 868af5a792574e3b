"use strict";

const body = document.querySelector("#cases tbody");
const shown = () => [...body.rows].filter((row) => !row.hidden);

// Sorting goes by data-value, not by the text that is shown; cells without a value come last in either order.
function compare(one, other) {
  const [a, b] = [Number(one), Number(other)];
  return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other, "en", { numeric: true }) : a - b;
}

function sortBy(header) {
  const first = header.dataset.first;
  const opposite = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? opposite : first;
  const value = (row) => row.cells[header.cellIndex].dataset.value ?? "";
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
  });
  body.append(...rows);
  for (const each of header.parentNode.querySelectorAll("[aria-sort]")) each.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order);
}

for (const header of document.querySelectorAll("#cases th[aria-sort]"))
  header.querySelector("button").addEventListener("click", () => sortBy(header));

// A row is shown if it holds the words that are sought and, if only such are wanted, failed or has warnings.
const words = document.querySelector("#words");
const remarkable = document.querySelector("#remarkable");

function filter() {
  const wanted = words.value.toLowerCase();
  for (const row of body.rows)
    row.hidden = !row.textContent.toLowerCase().includes(wanted) || (remarkable.checked && !("remarkable" in row.dataset));
  document.querySelector("#shown").textContent = `${shown().length} of ${body.rows.length} shown`;
}

words.addEventListener("input", filter);
remarkable.addEventListener("change", filter);
filter();

// A picture opens above the page; the arrow keys go through the pictures of the rows that are shown.
const viewer = document.querySelector("#viewer");
let current = null;

function show(link) {
  current = link;
  const picture = viewer.querySelector("img");
  picture.src = link.querySelector("img").src;
  picture.alt = link.querySelector("img").alt;
  viewer.querySelector("strong").textContent = link.dataset.case;
  viewer.querySelector(".png").href = link.href;
  viewer.querySelector(".slices").hidden = !link.dataset.viewer;
  viewer.querySelector(".slices").href = link.dataset.viewer ?? "";
  if (!viewer.open) viewer.showModal();
}

function step(by) {
  const links = shown().flatMap((row) => [...row.querySelectorAll(".thumbnail")]);
  const next = links[links.indexOf(current) + by];
  if (next) show(next);
}

body.addEventListener("click", (event) => {
  const link = event.target.closest(".thumbnail");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link);
});
viewer.querySelector("#previous").addEventListener("click", () => step(-1));
viewer.querySelector("#next").addEventListener("click", () => step(1));
viewer.querySelector("#close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("close", () => current.focus());

// On paper every message is open.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
});
