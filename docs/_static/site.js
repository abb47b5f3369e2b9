// A picture is a link to itself, so that it can be seen in its full size.
function linkPicture(picture) {
  if (picture.closest("a")) return;
  const link = document.createElement("a");
  link.href = picture.src;
  picture.replaceWith(link);
  link.append(picture);
}

// Browsers break lines after hyphens, also after those of an option: each word of a command is made a box of its own.
function boxWords(text) {
  const pieces = text.data.split(/(\S+)/).map((piece, index) => {
    if (index % 2 === 0) return piece;
    const box = document.createElement("span");
    box.className = "word";
    box.textContent = piece;
    return box;
  });
  text.replaceWith(...pieces);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("article img").forEach(linkPicture);
  for (const block of document.querySelectorAll(".highlight-console pre, .highlight-bash pre")) {
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    texts.forEach(boxWords);
  }
});
