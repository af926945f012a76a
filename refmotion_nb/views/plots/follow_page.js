// Gives figures the colours of the page that shows them. Paper has those of the screen: canvases are not drawn again for it.
// models[i][names[i]] is light[i] or dark[i]; `where` selects what only a dark page has.
let shown = false  // they come in light colours
function paint() {
  const wanted = document.querySelector(where) !== null
  if (wanted === shown)
    return
  shown = wanted
  const colours = shown ? dark : light
  for (let i = 0; i < models.length; i++)
    models[i][names[i]] = colours[i]
}
paint()
const switches = new MutationObserver(paint)  // of the theme, while the page is open
for (const element of [document.documentElement, document.body])
  switches.observe(element, {attributes: true})
