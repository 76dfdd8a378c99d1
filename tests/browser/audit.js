// Looks at an open page as a person would who checks it for access.
() => {
  const parts = (colour) => {
    const numbers = colour.match(/[\d.]+/g).map(Number);
    return [...numbers.slice(0, 3), numbers[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  // Relative luminance and contrast as in WCAG 2.2.
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const own = parts(getComputedStyle(element).backgroundColor);
    return own[3] === 1 || !element.parentElement ? own : over(own, ground(element.parentElement));
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, noscript")) continue;
    const behind = ground(element);
    const ink = over(parts(getComputedStyle(element).color), behind);
    const [light, dark] = [luminance(ink), luminance(behind)].sort((a, b) => b - a);
    if ((light + 0.05) / (dark + 0.05) < 4.5) faint.push([text.slice(0, 20), ink, behind]);
  }
  const all = (selector) => [...document.querySelectorAll(selector)];
  const named = (e) =>
    e.textContent.trim() || e.getAttribute("aria-label") || e.getAttribute("aria-labelledby");
  const nameless = all("a, button, [role]:not([role=status]), summary, [tabindex]")
    .filter((e) => !named(e))
    .map((e) => e.outerHTML);
  const dangling = ["aria-labelledby", "aria-describedby"].flatMap((name) =>
    all(`[${name}]`)
      .filter((e) => !document.getElementById(e.getAttribute(name)))
      .map((e) => e.outerHTML),
  );
  const ids = all("[id]").map((e) => e.id);
  return {
    faint,
    nameless,
    dangling,
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    headings: all("h1").length,
    strangers: all("#strip > :not([role=option])").length,
    scopeless: all("th:not([scope])").length,
    ground: getComputedStyle(document.body).backgroundColor,
  };
}
