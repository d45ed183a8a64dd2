# Debian's Python with pip in /usr/local, as python:3.11-slim has it: the base from which tools/image_build.py builds where
# there is no registry. Its context is the content of the Debian packages, of which no maintainer script has run.
FROM scratch
COPY . /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
RUN export PYTHONDONTWRITEBYTECODE=1 \
 && cp /usr/share/base-passwd/passwd.master /etc/passwd && cp /usr/share/base-passwd/group.master /etc/group \
 && cat /usr/share/ca-certificates/mozilla/*.crt >/etc/ssl/certs/ca-certificates.crt \
 && python3 -m venv /usr/local \
 && python3 -c "import pathlib, shutil; [shutil.rmtree(each) for each in [*pathlib.Path('/usr').rglob('__pycache__')]]" \
 && python3 -m compileall -q -f --invalidation-mode unchecked-hash "$(python3 -c 'import os; print(os.__file__.removesuffix("/os.py"))')"
