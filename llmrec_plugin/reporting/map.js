"use strict";
// The maps: point at an item, or write its key, and its nearest neighbors are drawn and listed. A click puts the item
// into the page's address. Texts are only ever set as text.
const REACH = 30; // how far from a point the pointer may be, in units of the drawing
const LINES = "http://www.w3.org/2000/svg";
const maps = new Map();

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

function prepare(map) {
  const { keys, neighbors, similarities, texts } = JSON.parse(map.querySelector("script").textContent);
  const svg = map.querySelector("svg");
  const points = [...svg.querySelectorAll("circle")];
  const places = points.map((point) => [Number(point.getAttribute("cx")), Number(point.getAttribute("cy"))]);
  const lines = svg.querySelector(".lines");
  const output = map.querySelector("output");
  const input = map.querySelector("input");
  let shown = -1;
  points.forEach((point) => point.replaceChildren()); // titles, which stand in for this script
  map.querySelector("label").hidden = false;

  function line(from, to) {
    const made = document.createElementNS(LINES, "line");
    [["x1", from[0]], ["y1", from[1]], ["x2", to[0]], ["y2", to[1]]].forEach((pair) => made.setAttribute(...pair));
    return made;
  }

  function describe(row) {
    return texts ? [element("span", texts[row])] : [];
  }

  function show(row) {
    if (row === shown) return;
    shown = row;
    const near = neighbors[row];
    points.forEach((point) => point.removeAttribute("class"));
    near.forEach((other) => points[other].setAttribute("class", "near"));
    points[row].setAttribute("class", "shown");
    lines.replaceChildren(...near.map((other) => line(places[row], places[other])));
    const items = near.map((other, place) =>
      element("li", keys[other], element("small", similarities[row][place].toFixed(3)), ...describe(other)));
    const list = element("ol", "");
    list.append(...items);
    output.replaceChildren(element("b", keys[row]), ...describe(row), list);
  }

  function nearest(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = places.map(([x, y]) => Math.hypot(x - at.x, y - at.y));
    const row = far.reduce((best, value, place) => (value < far[best] ? place : best), 0);
    return far[row] <= REACH ? row : -1;
  }

  function find(written) {
    const exact = keys.indexOf(written);
    return exact >= 0 ? exact : keys.findIndex((key) => written && key.includes(written));
  }

  svg.addEventListener("pointermove", (event) => {
    const row = nearest(event);
    if (row >= 0) show(row);
  });
  svg.addEventListener("click", () => {
    if (shown >= 0) history.replaceState(null, "", "#" + encodeURIComponent(map.id + "=" + keys[shown]));
  });
  input.addEventListener("input", () => {
    const row = find(input.value);
    if (row >= 0) show(row);
  });
  maps.set(map.id, (key) => {
    const row = keys.indexOf(key);
    if (row < 0) return;
    show(row);
    map.scrollIntoView();
  });
}

function follow() {
  const [id, ...key] = decodeURIComponent(location.hash.slice(1)).split("=");
  if (maps.has(id)) maps.get(id)(key.join("="));
}

document.querySelectorAll(".map").forEach(prepare);
addEventListener("hashchange", follow);
follow();
