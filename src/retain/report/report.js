"use strict";
const tip = document.getElementById("tip");

function show(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.classList.add("on");
  const box = tip.getBoundingClientRect(), gap = 14;
  const left = Math.max(8, Math.min(x + gap, innerWidth - box.width - 8));
  const top = y + gap + box.height > innerHeight ? y - gap - box.height : y + gap;
  tip.style.transform = `translate(${left}px, ${Math.max(8, top)}px)`;
}

function hide() {
  tip.classList.remove("on");
}

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest("[data-tip]");
  target ? show(target, event.clientX, event.clientY) : hide();
});
document.addEventListener("pointerdown", (event) => {
  const target = event.target.closest("[data-tip]");
  target ? show(target, event.clientX, event.clientY) : hide();
});
document.addEventListener("focusin", (event) => {
  const target = event.target.closest("[data-tip]");
  if (!target) return hide();
  const box = target.getBoundingClientRect();
  show(target, box.left, box.bottom);
});
document.addEventListener("focusout", hide);
addEventListener("scroll", hide, { passive: true });

for (const choice of document.querySelectorAll("input[name=view]")) {
  choice.addEventListener("change", () => {
    for (const view of document.querySelectorAll("[data-view]")) {
      view.hidden = view.dataset.view !== choice.value;
    }
  });
}
