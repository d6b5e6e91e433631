# Installs the `lowrank` command of version @VERSION@: the archive is downloaded, its checksum compared, and the program copied.
#
#   LOWRANK_PREFIX  where to: PREFIX\bin [default: %LOCALAPPDATA%\lowrank]
#   LOWRANK_URL     where from [default: the release]
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

$version = '@VERSION@'
$sha256 = '@SHA256:x86_64-pc-windows-msvc@'
$url = if ($env:LOWRANK_URL) { $env:LOWRANK_URL } else { '@URL@/releases/download/v@VERSION@' }
$prefix = if ($env:LOWRANK_PREFIX) { $env:LOWRANK_PREFIX } else { Join-Path $env:LOCALAPPDATA 'lowrank' }
if (-not $sha256) { throw "version $version has no build for Windows; build it with: cargo install lowrank" }

$name = "lowrank-$version-x86_64-pc-windows-msvc"
$work = Join-Path ([IO.Path]::GetTempPath()) ([Guid]::NewGuid())
New-Item -ItemType Directory $work | Out-Null
try {
    $archive = Join-Path $work "$name.zip"
    Invoke-WebRequest -UseBasicParsing "$url/$name.zip" -OutFile $archive
    $got = (Get-FileHash -Algorithm SHA256 $archive).Hash.ToLower()
    if ($got -ne $sha256) { throw "$url/$name.zip: its SHA-256 is $got, not $sha256; nothing was installed" }
    Expand-Archive $archive $work
    $bin = Join-Path $prefix 'bin'
    New-Item -ItemType Directory -Force $bin | Out-Null
    Copy-Item -Force (Join-Path $work "$name\lowrank.exe") $bin
} finally {
    Remove-Item -Recurse -Force $work
}
Write-Output "installed $(& (Join-Path $bin 'lowrank.exe') --version) to $bin"
if (($env:PATH -split ';') -notcontains $bin) { Write-Output "add $bin to PATH to run it by its name" }
