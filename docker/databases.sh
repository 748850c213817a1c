#!/bin/sh
# Run by PostgreSQL's image on an empty volume: a database and a role each for Dagster and MLflow.
set -eu

for name in dagster mlflow; do
  case $name in
    dagster) password=$RSPRUNE_POSTGRES_PASSWORD ;;
    mlflow) password=$MLFLOW_POSTGRES_PASSWORD ;;
  esac
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" \
    --set name="$name" --set password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
