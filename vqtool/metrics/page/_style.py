"""How the report page looks."""

STYLE = """
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff; max-width: 1100px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; overflow-wrap: anywhere; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
.headline { color: #444; } p { max-width: 75ch; }
.warning { background: #fff4d6; border-left: 4px solid #d9a400; padding: .4em .8em; max-width: none; }
.columns { display: flex; flex-wrap: wrap; gap: 0 3em; align-items: flex-start; }
table { border-collapse: collapse; font-size: .93em; } th { text-align: left; font-weight: 600; }
td, th { padding: .2em .9em .2em 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; overflow-wrap: anywhere; }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums; }
.sheet { display: flex; flex-wrap: wrap; gap: .8em 1.6em; }
.row { display: flex; gap: .4em; } .row figure:first-child + figure { margin-left: .5em; }
figure { margin: 0; width: min-content; min-width: 72px; }
figcaption { font-size: .72em; color: #555; overflow-wrap: anywhere; white-space: pre-line;
  line-height: 1.2; margin-top: .2em; }
img { display: block; image-rendering: pixelated; background: #eee; }
.none { width: 72px; height: 72px; background: #f2f2f2; color: #888; font-size: .7em; display: grid;
  place-items: center; text-align: center; }
svg { max-width: 100%; height: auto; } svg text { font-size: 11px; fill: #444; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #16181b; } .headline, figcaption { color: #aaa; } td, th { border-color: #333; }
  .warning { background: #3a3215; } svg text { fill: #bbb; } .none { background: #26292d; }
}
"""
