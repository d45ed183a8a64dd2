"""The page's style sheet: light, dark, phone and paper. Colours never carry meaning alone; words and arrows do too."""

CSS = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1c1e21;--soft:#5d636b;--faint:#8b9199;--line:#e3e4e0;--accent:#2457c5;
--second:#c2571a;--pale:#2457c559;--good:#1a7f4b;--good-bg:#e4f4ea;--bad:#b3261e;--bad-bg:#fbe9e7;--same:#5d636b;
--same-bg:#eeefec;--code:#f4f4f0}
@media(prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1c1f25;--ink:#e8eaed;--soft:#a4abb5;--faint:#7b828c;
--line:#30343c;--accent:#7da7ff;--second:#f2a268;--pale:#7da7ff66;--good:#67d69a;--good-bg:#16372580;--bad:#ff8f86;
--bad-bg:#4a1d1a80;--same:#a4abb5;--same-bg:#2a2e36;--code:#181b20}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1040px;margin:0 auto;padding:40px 24px 72px}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:2px 0 6px;overflow-wrap:anywhere}
h2{font-size:20px;letter-spacing:-.01em;margin:48px 0 14px}
h3{font-size:14px;margin:0 0 6px;color:var(--soft);font-weight:600}
p{margin:0 0 10px}
.eyebrow{color:var(--accent);font-size:13px;font-weight:650;letter-spacing:.06em;text-transform:uppercase;margin:0}
.lead{color:var(--soft);margin:0;overflow-wrap:anywhere}
.verdict{margin:24px 0 0;padding:18px 22px;border-radius:12px;border:1px solid var(--line);
border-left:5px solid var(--same);background:var(--card)}
.verdict.better{border-left-color:var(--good)}.verdict.worse{border-left-color:var(--bad)}
.verdict p:first-child{font-size:19px;font-weight:600;letter-spacing:-.01em}.verdict p:last-child{margin:0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(172px,1fr));gap:14px;margin:16px 0 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
.card b{display:block;font-size:24px;line-height:1.3;letter-spacing:-.02em;font-weight:650;overflow-wrap:anywhere}
.card>span:not(.chip){color:var(--soft);font-size:14px}
.panel{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px}
.panel+.panel{margin-top:14px}.small>.panel{margin-top:0}
.small{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:14px;margin-top:14px}
.scroll{overflow-x:auto}
.small th,.small td{padding:8px 6px}.small th{white-space:normal}
table{border-collapse:collapse;width:100%;font-size:15px}
th,td{text-align:right;padding:8px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:13px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--card)}
tr:last-child td{border-bottom:0}
td.name{font-weight:600;white-space:normal;min-width:8em}td.name small{display:block;font-weight:400;color:var(--faint)}
td.metric,th.metric{text-align:left;padding-left:10px;position:static}td[rowspan]{vertical-align:top}
td.base{color:var(--soft)}
.group{border-left:1px solid var(--line)}th[colspan]{text-align:center}
thead tr:first-child th{border-bottom:0;padding-bottom:0}
.heat td{background:color-mix(in srgb,var(--accent) calc(var(--shade,0%)*.4),transparent)}
.heat th[scope=row]{text-align:left;font-weight:600}.heat caption{text-align:left;color:var(--soft);padding-bottom:8px}
.answers td{white-space:pre-wrap;text-align:left;vertical-align:top;min-width:11em;overflow-wrap:anywhere}
.answers th{text-align:left}
.chip{display:inline-block;white-space:nowrap;border-radius:99px;padding:1px 9px;font-size:13px;font-weight:600;
background:var(--same-bg);color:var(--same)}
.chip.better{background:var(--good-bg);color:var(--good)}.chip.worse{background:var(--bad-bg);color:var(--bad)}
dl{display:grid;grid-template-columns:minmax(130px,max-content) 1fr;gap:7px 20px;margin:0;font-size:15px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
ul{margin:0;padding-left:20px}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{overflow-wrap:anywhere;color:var(--soft)}
pre{background:var(--code);border:1px solid var(--line);border-radius:10px;padding:14px 16px;margin:0;overflow-x:auto}
.note{color:var(--faint);font-size:14px;margin:12px 0 0}
.legend{display:flex;gap:18px;flex-wrap:wrap;color:var(--soft);font-size:14px;margin:0 0 8px}
.key{display:inline-block;width:18px;height:0;border-top:3px solid var(--accent);margin-right:7px;vertical-align:middle}
.key.raw{border-color:var(--pale)}
.key.dots{width:9px;height:9px;border:0;border-radius:50%;background:var(--second)}
.narrow{display:none}.plot{display:block;width:100%;height:auto;overflow:visible}
.plot text{font-family:inherit;font-size:12px;fill:var(--soft)}.plot .label{fill:var(--faint)}
.effect line{stroke:var(--same);stroke-width:3}.effect circle{fill:var(--same)}
.effect.better line{stroke:var(--good)}.effect.better circle{fill:var(--good)}
.effect.worse line{stroke:var(--bad)}.effect.worse circle{fill:var(--bad)}
.grid{stroke:var(--line)}.axis,.mark{stroke:var(--faint)}
path{fill:none;stroke-linejoin:round;stroke-linecap:round}
path.raw{stroke:var(--pale);stroke-width:1.2}path.line{stroke:var(--accent);stroke-width:2.4}
path.dots{stroke:var(--second);stroke-width:1.6;stroke-dasharray:4 4}
circle.dot{fill:var(--second);stroke:var(--card);stroke-width:1.5}
circle.spot{fill:transparent}circle.spot:hover{fill:var(--accent)}
footer{margin-top:56px;color:var(--faint);font-size:13px}
@media(max-width:600px){main{padding:24px 16px 48px}h1{font-size:27px}.card b{font-size:20px}
dl{grid-template-columns:1fr;gap:2px}
dd{margin-bottom:8px}.panel{padding:12px}.wide{display:none}.narrow{display:block}.plot text{font-size:13px}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--faint:#666;--line:#ccc}
main{max-width:none;padding:0}.panel,.card,.verdict,tr{break-inside:avoid}h2{break-after:avoid}body{font-size:12px}pre{white-space:pre-wrap}}
"""
