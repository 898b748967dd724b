"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const config = {
  background: null,
  axis: { labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor", tickColor: "currentColor", gridColor: "#8886", labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal" },
  legend: { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12, columns: 3, symbolBaseFillColor: "currentColor", symbolBaseStrokeColor: "currentColor" },
  title: { color: "currentColor", subtitleColor: "currentColor" }, rule: { color: "currentColor" }, text: { color: "currentColor" }, view: { stroke: null }, point: { color: "currentColor" },
};
const options = { actions: false, renderer: "svg", tooltip: true, logLevel: 1 };
const number = (x) => {
  if (x === null) return "–";
  const small = x !== 0 && Math.abs(x) < 1e-3;
  return small ? x.toExponential(2).replace(/\.?0*e/, "e") : Number(x.toPrecision(3)).toString();
};
const duration = (x) => {
  if (x === null) return "–";
  const unit = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]].find(([size]) => x >= size) || [1e-9, "ns"];
  return `${number(x / unit[0])} ${unit[1]}`;
};

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// A table that is wider than its box says so above it.
function markCut() {
  for (const box of document.querySelectorAll(".scroll")) {
    let hint = box.previousElementSibling;
    if (!hint || hint.className !== "cut") {
      hint = element("p", "More columns: scroll the table sideways →");
      hint.className = "cut";
      box.before(hint);
    }
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
  }
}
