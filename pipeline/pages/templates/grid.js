
"use strict";
(() => {
  const main = document.querySelector("main");
  const cards = [...main.children].map(element => ({
    element,
    order: Number(element.dataset.order),
    score: "score" in element.dataset ? Number(element.dataset.score) : NaN,
    groups: element.dataset.groups.split(" "),
    text: element.textContent.toLowerCase(),
  }));
  const control = name => document.getElementById(name);
  const fits = {
    any: () => true,
    zero: card => card.score === 0,
    more: card => card.score > 0,
  };
  const orders = {
    worst: (a, b) => a.order - b.order,
    best: (a, b) => b.score - a.score || a.order - b.order,
  };

  function filter() {
    const words = control("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const group = control("group").value;
    const worth = fits[control("worth").value];
    let seen = 0;
    for (const card of cards) {
      const shown = worth(card) && (!group || card.groups.includes(group))
        && words.every(word => card.text.includes(word));
      card.element.hidden = !shown;
      seen += shown;
    }
    control("count").textContent = `${seen} of ${cards.length}`;
  }

  function arrange() {
    cards.sort(orders[control("order").value]);
    main.append(...cards.map(card => card.element));
  }

  control("order").addEventListener("change", arrange);
  for (const name of ["search", "group", "worth"]) {
    control(name).addEventListener("input", filter);
  }
  control("filters").addEventListener("submit", event => event.preventDefault());
  control("filters").hidden = false;
  filter();
})();
