"use strict";
// Without this script every row still opens by itself.
const rows = document.querySelectorAll("main > details");
const all = document.getElementById("all");
const isAnyOpen = () => [...rows].some((row) => row.open);
const name = () => { all.textContent = isAnyOpen() ? "Close all" : "Open all"; };
all.hidden = rows.length === 0;
all.addEventListener("click", () => {
  const open = !isAnyOpen();
  rows.forEach((row) => { row.open = open; });
});
rows.forEach((row) => row.addEventListener("toggle", name));
// A link opens the row it leads to.
const follow = () => {
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (row instanceof HTMLDetailsElement) { row.open = true; row.scrollIntoView({ block: "nearest" }); }
};
addEventListener("hashchange", follow);
follow();
name();
